"""The private record of one NAME: what it holds, and how it becomes bytes that can prove they are whole.

Pure: no clock, disk or network.
"""

import hashlib
from typing import Any, Final, Literal

import msgspec

from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret

__all__ = [
    "NOTHING",
    "SPENT_KEPT",
    "UNREADABLE",
    "AuthMethod",
    "Doubt",
    "Failure",
    "Grant",
    "Login",
    "Record",
    "Stored",
    "Tombstone",
    "Way",
    "decode",
    "decode_secret",
    "encode",
    "spend",
]

VERSION: Final = 1

SPENT_KEPT: Final = 256

NOTHING: Final = ""
"""The checksum of a record that does not exist."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be; the last one for brackets without end."""

AuthMethod = Literal[
    "none",
    "client_secret_basic",
    "client_secret_post",
    "private_key_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
]

Way = Literal["browser", "device", "client_credentials"]

Waiting = Literal["transient", "too_early", "client_rejected", "in_doubt", "reauthorization_required"]


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the last exchange ended with, if not with a token; ``at`` and ``retry_at`` are epoch seconds."""

    outcome: Waiting
    code: str
    description: str
    at: float
    retry_at: float | None
    moment: Moment | None = None
    """``at`` by every clock: a wait is as long as it was made, whatever the wall clock is set to meanwhile."""
    busy_until: float | None = None
    """When the server wants to be asked again, by anybody: none of its grants is exchanged before."""


class Doubt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The refresh token may have been spent: a request left at ``since`` and no answer is known."""

    since: Moment
    replay_over: bool = False
    """``since`` is later than it was, because nobody can tell any more: no grace counts from it."""
    kept: str | None = None
    """Where an answer lies that came but could not be read, in words: a person may find the new tokens in it."""
    restored: bool = False
    """It is not about an answer: readers have seen a later generation than the record's."""
    spill: str | None = None
    """Where an answer may lie that nobody has seen: the machine went down, and its file system may not be there yet."""
    begun_from: str = NOTHING
    """The checksum of the record that such an answer was begun from."""

    def knowing(self, kept: str | None) -> "Doubt":
        """Return it with what is known of an answer; the first one counts, for it came when the token was spent."""
        return msgspec.structs.replace(self, kept=kept) if self.kept is None else self

    def and_then(self, later: "Doubt") -> "Doubt":
        """Return it with what is known of a later loss: only the last answer can be of use."""
        known = self.knowing(later.kept)
        if later.spill is None:
            return known
        return msgspec.structs.replace(known, spill=later.spill, begun_from=later.begun_from)


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a person logged in: enough to do it again."""

    client: Literal["given", "metadata_document", "registered"]
    """Where the client came from; one that was registered for this grant can be registered anew."""
    client_expires_at: float | None = None
    """When the server forgets the client's secret (RFC 7591 section 3.2.1), epoch seconds."""
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    redirect_uri: str | None = None
    endpoints_given: bool = False
    """A person named them: there is no metadata to find them by."""
    issuer_given: bool = False
    """A person named the authorization server of an API that does not."""
    scope: str | None = None
    """What a person said to ask for, instead of what the server names."""
    resource: str | None = None
    """The same of RFC 8707's."""
    way: Way = "browser"
    params: tuple[tuple[str, str], ...] = ()
    """What went along in the authorization request, besides what always does."""


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="grant"):
    """What a person once authorized, and where its rotation stands. Times are epoch seconds."""

    name: str
    grant_id: str
    """A new one for each import or login."""
    generation: int
    begun_from: str
    """The checksum of the record that this one replaced: an answer fits only what it was begun from."""

    issuer: str | None
    token_endpoint: str
    revocation_endpoint: str | None = None
    """Where ``logout`` ends it at the server (RFC 7009)."""
    client_id: str
    client_secret: Secret | None
    token_endpoint_auth_method: AuthMethod
    refresh_token: Secret | None
    """``None`` for client credentials (RFC 6749 section 4.4): nothing rotates, but tokens are renewed all the same."""
    renewable: bool = True
    """False where a login brought no refresh token: there will be no other access token than this one."""
    private_key_file: str | None = None
    """PEM; signs the assertion of ``private_key_jwt``, and is read anew for each."""
    private_key_id: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    client_cert: str | None = None
    """PEM, with its chain; shown to the token endpoint (RFC 8705)."""
    client_key: str | None = None
    scope: str | None
    """What was granted last."""
    asked_scope: str | None = None
    """What was asked for at the beginning: where scope is sent, this is, for what is granted may be less."""
    resource: str | None
    """RFC 8707, verbatim: a slash more would make it another resource."""
    send_resource: bool | None
    """``None`` leaves it to what is known of the server, as ``UNSET`` does for ``replay``."""
    server_url: str | None
    origins: tuple[str, ...]
    replay: float | msgspec.UnsetType | None = msgspec.UNSET
    """Seconds for which the server takes the previous refresh token again; 0 never, ``None`` for ever."""
    max_age: float | None
    """Seconds after which an access token of unknown lifetime is replaced."""

    access_token: Secret | None
    token_type: str
    issued_at: float
    """When the request that brought the access token was sent."""
    issued: Moment | None = None
    """``issued_at`` by every clock: a wall clock that was set since cannot say how long the token has lived."""
    expires_at: float | None
    authorized_at: float
    login: Login | None = None
    """``None`` where the grant was imported."""
    last_rotation_at: float | None = None

    dead: bool = False
    """The server gave its verdict: only a person can help."""
    failures: int = 0
    refusals: int = 0
    """How many times in a row the server has refused without a verdict that the grant is dead."""
    failure: Failure | None = None
    doubt: Doubt | None = None
    demanded: int = 0
    """How many rotations in a row were demanded and not due."""
    refuses_early: bool = False
    """The server was seen to refuse a refresh while the access token lived, and to grant it later."""
    resource_refused: bool = False
    """The server was seen to refuse ``resource``."""
    not_before: float | None = None
    """The refresh token says itself that it must not be used earlier (``nbf``, RFC 7519 section 4.1.5)."""
    spent: tuple[str, ...] = ()
    """Fingerprints of refresh tokens that were used up, oldest first."""


class Tombstone(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tombstone"
):
    """What stays of a removed grant: enough that its generation never falls and no spent token comes back."""

    name: str
    grant_id: str
    generation: int
    begun_from: str
    removed_at: float
    scope: str | None
    origins: tuple[str, ...]
    spent: tuple[str, ...] = ()


Record = Grant | Tombstone


class Stored(msgspec.Struct, frozen=True):
    """A record as it lies on the disk; ``checksum`` is ``NOTHING`` where there is none."""

    record: Record | None
    checksum: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    checksum: str
    record: msgspec.Raw


class _Version(msgspec.Struct):
    version: int


def spend(spent: tuple[str, ...], token: Secret) -> tuple[str, ...]:
    """Return ``spent`` with ``token`` as its newest; the oldest beyond 256 are forgotten."""
    fingerprint = token.fingerprint()
    return (*(known for known in spent if known != fingerprint), fingerprint)[-SPENT_KEPT:]


def encode(record: Record) -> tuple[bytes, str]:
    """Return a record's bytes and their checksum."""
    raw = msgspec.json.encode(record, enc_hook=_encode_secret)
    checksum = hashlib.sha256(raw).hexdigest()
    return msgspec.json.encode(_Envelope(VERSION, checksum, msgspec.Raw(raw))) + b"\n", checksum


def decode(data: bytes, name: str) -> Stored:
    """Read a record of ``name``, whole or not at all.

    Raises ``GrantFileError`` for another version, a wrong checksum, another name, or anything that is not a record.
    """
    try:
        envelope = _ENVELOPE.decode(data)
    except UNREADABLE:
        raise GrantFileError(_unreadable(data)) from None
    if envelope.version != VERSION:
        raise GrantFileError(_unreadable(data))
    checksum = hashlib.sha256(envelope.record).hexdigest()
    if checksum != envelope.checksum:
        raise GrantFileError("the checksum does not fit: the file was damaged, or changed by hand")
    try:
        record = _RECORD.decode(envelope.record)
    except UNREADABLE:
        raise GrantFileError("the record has fields that this version of refresher does not know") from None
    if record.name != name:
        raise GrantFileError(f"the record is of the name {record.name!r}: the file was copied or renamed")
    return Stored(record, checksum)


def _unreadable(data: bytes) -> str:
    if not data.strip(b"\0 \n"):
        return "the file is empty"
    try:
        version = msgspec.json.decode(data, type=_Version).version
    except UNREADABLE:
        return "the file is not a grant record, or is torn"
    if version == VERSION:
        return "the file is not a grant record"
    return f"the file has version {version}, this refresher reads version {VERSION}: use the newer refresher"


def _encode_secret(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError


def decode_secret(kind: type, value: Any) -> Secret:
    """Make a ``Secret`` of a text while msgspec decodes."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError("Expected a text")


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_RECORD: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(Record, dec_hook=decode_secret)
