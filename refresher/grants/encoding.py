"""The bytes of records, intents and kept answers: one line of JSON with a version and a checksum, plain or sealed.

A sealed record is the same JSON with a number in the place of each secret. ``decode`` needs no key: the secrets open
when they are used. Pure: no clock, disk or network.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import msgspec

from refresher.common.errors import GrantFileError, StorageError
from refresher.common.secret import Secret
from refresher.grants.envelope import PLAIN, Envelope, Key, Keys, Part, SealedSecret, seal
from refresher.grants.record import Grant, Moved, Record, Stored, Tombstone
from refresher.grants.token_file import derive

__all__ = [
    "CONVERTERS",
    "DECODE_ERRORS",
    "VERSION",
    "decode",
    "decode_secret",
    "encode",
    "encode_kept",
    "is_sealed",
    "key_id_of",
    "open_kept",
    "open_secrets",
    "require_key",
    "token_file_hash",
    "unwrap",
    "version_error",
    "without_params_and_client_secret",
    "wrap",
]

VERSION: Final = 4
"""The format version of records and intents. A change of a field name, a kind or a literal raises it."""

_Fields = dict[str, Any]
_Key = Literal["record", "intent", "sealed"]

CONVERTERS: Final[dict[int, Callable[[_Fields], _Fields]]] = {
    1: lambda fields: fields,  # version 2 has more fields, and a default for each of them
    2: lambda fields: fields,  # version 3 has another kind of record
    3: lambda fields: fields,  # version 4 can be sealed
}
"""For each earlier version, the function that makes the fields of the next version; those of a record have ``kind``,
those of an intent do not. The converted record reaches the disk with the next write."""

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for invalid data; ``RecursionError`` for brackets that are nested too deep."""

_TOO_LONG: Final = "too long"
"""In the place of the hash of a token file that cannot be published."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    checksum: str
    record: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    intent: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    sealed: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _SealedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="record"):
    """The clear part of a sealed record."""

    key: str
    """The id of the key."""
    fingerprint: str | None
    """Of the refresh token."""
    token_file: str | None
    """The SHA-256 of the token file that the record calls for, in hex; ``None``: it calls for none."""
    record: msgspec.Raw
    """With a number in the place of each secret."""


Kept = Literal["answer", "token_file"]


class _SealedBytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="bytes"):
    """The clear part of bytes that are no record."""

    key: str
    name: str
    what: Kept


class _Version(msgspec.Struct):
    version: int


def encode(record: Record, keys: Keys = PLAIN) -> tuple[bytes, str]:
    """Return the bytes of a record and their checksum: sealed if there is a current key, and a secret can be in it.

    Raises ``KeyUnavailable`` if the key of this write, or that of a secret of ``record``, is not there. Once this has
    returned for a record, it returns for each that follows from it: a process keeps its key and opened secrets.
    """
    key = None if isinstance(record, Tombstone) else keys.current()
    if key is None or isinstance(record, Tombstone):
        return wrap("record", msgspec.json.encode(record, enc_hook=_reveal))
    texts: list[str] = []

    def number(secret: Secret) -> int:
        texts.append(secret.reveal())
        return len(texts) - 1

    raw = msgspec.json.encode(record, enc_hook=number)
    clear = _SealedRecord(key.id, record.fingerprint(), _hash_of_token_file(record), msgspec.Raw(raw))
    return _seal(key, clear, msgspec.json.encode(texts))


def _reveal(secret: Secret) -> str:
    return secret.reveal()  # not Secret.reveal: that of a sealed one is another


def encode_kept(name: str, data: bytes, keys: Keys = PLAIN, what: Kept = "answer") -> bytes:
    """Return what is kept of ``name`` beside its record: ``data`` as it is, or sealed if there is a current key.

    Raises ``KeyUnavailable``.
    """
    key = keys.current()
    return data if key is None else _seal(key, _SealedBytes(key.id, name, what), data)[0]


def open_kept(data: bytes, name: str, keys: Keys, what: Kept = "answer") -> bytes:
    """Return what was given to ``encode_kept``. Raises ``KeyUnavailable``, and ``GrantFileError`` if it was changed."""
    if not is_sealed(data):
        return data
    _, raw, version, _ = _checked(data, "sealed")
    envelope = _envelope(raw)
    try:
        clear = msgspec.json.decode(envelope.clear, type=_SealedBytes)
    except DECODE_ERRORS:
        raise GrantFileError("the envelope is of another kind, or of a newer refresher") from None
    if (clear.name, clear.what) != (name, what):
        raise GrantFileError(f"it is the {clear.what} of the name {clear.name!r}: it was copied or renamed")
    return Part(envelope, version, clear.key, keys).open()


def is_sealed(data: bytes) -> bool:
    """Whether ``data`` is an envelope: a whole line of ours that holds one."""
    try:
        return _LINE.decode(data).sealed is not msgspec.UNSET
    except DECODE_ERRORS:
        return False


def key_id_of(data: bytes) -> str | None:
    """Return the id of the key that ``data`` is sealed with, or ``None``. Raises ``GrantFileError``."""
    if not is_sealed(data):
        return None
    envelope = _envelope(_checked(data, "sealed")[1])
    try:
        return msgspec.json.decode(envelope.clear, type=_SealedRecord | _SealedBytes).key
    except DECODE_ERRORS:
        raise GrantFileError("the envelope has fields that this version of refresher does not know") from None


def open_secrets(record: Record | None) -> None:
    """Open what is sealed in ``record``, so that nothing that follows from it needs a key to be read.

    Raises ``KeyUnavailable``, and ``GrantFileError`` if it was changed.
    """
    for secret in _secrets(record):
        if isinstance(secret, SealedSecret):
            secret.part.open()


def require_key(record: Record | None) -> None:
    """Raise ``KeyUnavailable`` if the secrets of ``record`` are sealed with a key that is not here; open nothing."""
    for secret in _secrets(record):
        if isinstance(secret, SealedSecret):
            secret.part.require_key()
            return  # all are in one envelope


def without_params_and_client_secret(grant: Grant) -> Grant:
    """Return what a login can use of ``grant`` if its key is lost."""
    login = None if grant.login is None else msgspec.structs.replace(grant.login, params=())
    return msgspec.structs.replace(grant, client_secret=None, refresh_params=(), login=login)


def token_file_hash(record: Record) -> str | None:
    """Return the SHA-256 of the token file that ``record`` calls for, if its access token is sealed and not opened.

    ``None``: ``derive`` needs no key. In any other case, this is that of the bytes that ``derive`` would return.
    """
    token = record.access_token if isinstance(record, Grant) else None
    if not isinstance(token, SealedSecret) or token.part.is_open:
        return None
    return token.part.token_file


def _secrets(record: Record | None) -> Iterator[Secret | None]:
    grant = record.arriving if isinstance(record, Moved) else record
    if isinstance(grant, Grant):
        yield from (grant.refresh_token, grant.access_token, grant.client_secret, grant.id_token)
        for _, value in (*grant.refresh_params, *(() if grant.login is None else grant.login.params)):
            yield value


def _hash_of_token_file(record: Record) -> str | None:
    # Between an answer and its saving: an error here must not lose the only copy of a token.
    try:
        data = derive(record)
    except StorageError:
        return _TOO_LONG
    except Exception:  # noqa: BLE001
        return None  # a comparison derives it, and fails there
    return None if data is None else hashlib.sha256(data).hexdigest()


def _seal(key: Key, clear: _SealedRecord | _SealedBytes, plain: bytes) -> tuple[bytes, str]:
    return wrap("sealed", seal(key, VERSION, msgspec.json.encode(clear), plain))


def wrap(key: _Key, raw: bytes) -> tuple[bytes, str]:
    """Return the line that holds ``raw`` with its version and its checksum, and the checksum."""
    checksum = hashlib.sha256(raw).hexdigest()
    return msgspec.json.encode(_Line(VERSION, checksum, **{key: msgspec.Raw(raw)})) + b"\n", checksum


def decode(data: bytes, name: str, keys: Keys = PLAIN) -> Stored:
    """Return the record of ``name`` in ``data``. It needs no key: the secrets of a sealed one open with ``keys``.

    Raises ``GrantFileError`` for a later version, a wrong checksum, another name, or data that is not a record.
    """
    hook: Callable[[type, Any], Secret] = decode_secret
    fingerprint = None
    kind, found, version, checksum = _checked(data, "record", "sealed")
    if kind == "sealed":
        raw, fingerprint, hook = _unsealed(found, version, keys)
    else:
        raw = _converted(found, version)
    try:
        record: Record = (
            _RECORD.decode(raw) if hook is decode_secret else msgspec.json.decode(raw, type=Record, dec_hook=hook)
        )
    except DECODE_ERRORS:
        raise GrantFileError("the record has fields that this version of refresher does not know") from None
    if record.name != name:
        raise GrantFileError(f"the record belongs to the name {record.name!r}: the file was copied or renamed")
    if fingerprint is not None:
        grant = record.arriving if isinstance(record, Moved) else record
        if isinstance(grant, Grant) and isinstance(grant.refresh_token, SealedSecret):
            grant.refresh_token.identify(fingerprint)
    return Stored(record, checksum)


def _unsealed(
    raw: msgspec.Raw, version: int, keys: Keys
) -> tuple[bytes | msgspec.Raw, str | None, Callable[[type, Any], Secret]]:
    """Return the JSON of a sealed record, the fingerprint of its refresh token, and its hook."""
    envelope = _envelope(raw)
    try:
        clear = msgspec.json.decode(envelope.clear, type=_SealedRecord)
    except DECODE_ERRORS:
        raise GrantFileError("the envelope is of another kind, or of a newer refresher") from None
    part = Part(envelope, version, clear.key, keys, clear.token_file)

    def hook(kind: type, value: Any) -> Secret:
        if kind is Secret and type(value) is int and value >= 0:
            return SealedSecret(part, value)
        raise TypeError("Expected a number of a secret")

    return _converted(clear.record, version), clear.fingerprint, hook


def _envelope(raw: msgspec.Raw) -> Envelope:
    try:
        return _ENVELOPE.decode(raw)
    except DECODE_ERRORS:
        raise GrantFileError("the file is not an envelope") from None


def unwrap(key: Literal["record", "intent"], data: bytes) -> tuple[bytes | msgspec.Raw, str]:
    """Return the JSON in ``data``, converted to the current version, and its checksum on the disk.

    Raises ``GrantFileError`` for a later version, a wrong checksum, or data of another kind.
    """
    _, raw, version, checksum = _checked(data, key)
    return _converted(raw, version), checksum


def _checked(data: bytes, *kinds: _Key) -> tuple[_Key, msgspec.Raw, int, str]:
    """Return which of ``kinds`` ``data`` is, its JSON, version and checksum.

    Raises ``GrantFileError`` as ``unwrap`` does.
    """
    try:
        line: _Line | None = _LINE.decode(data)
    except DECODE_ERRORS:
        line = None
    kind, raw = next(
        ((each, raw) for each in kinds if (raw := getattr(line, each, msgspec.UNSET)) is not msgspec.UNSET),
        (kinds[0], msgspec.UNSET),
    )
    if line is None or raw is msgspec.UNSET or line.version not in (VERSION, *CONVERTERS):
        what = "is not a grant record, or is incomplete" if data.strip(b"\0 \n") else "is empty"
        raise GrantFileError(version_error(data) or f"the file {what}")
    checksum = hashlib.sha256(raw).hexdigest()
    if checksum != line.checksum:
        raise GrantFileError("the checksum does not match: the file was damaged or edited")
    return kind, raw, line.version, checksum


def _converted(raw: msgspec.Raw, version: int) -> bytes | msgspec.Raw:
    if version == VERSION:
        return raw
    try:
        fields = msgspec.json.decode(raw, type=_Fields)
    except DECODE_ERRORS:
        raise GrantFileError("the file is not a grant record") from None
    for earlier in range(version, VERSION):
        fields = CONVERTERS[earlier](fields)
    return msgspec.json.encode(fields)


def version_error(data: bytes) -> str | None:
    """Return the message for data of a later version; ``None`` for other data."""
    try:
        version = msgspec.json.decode(data.partition(b"\n")[0], type=_Version).version
    except DECODE_ERRORS:
        return None
    newer = f"the file has version {version}, this refresher reads version {VERSION}: use the newer refresher"
    return newer if version > VERSION else None


def decode_secret(kind: type, value: Any) -> Secret:
    """Make a ``Secret`` from a string; a decoding hook for msgspec."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError("Expected a text")


_LINE: Final = msgspec.json.Decoder(_Line)
_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_RECORD: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(Record, dec_hook=decode_secret)
