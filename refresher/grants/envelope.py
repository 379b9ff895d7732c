"""Sealing: AES-256-GCM (NIST SP 800-38D) over the secrets of a record, or over an answer that was kept.

An envelope has a clear part, which holds no secret, and a sealed part. The clear part is authenticated with it: it
can be read without the key, and a change by somebody without the key is seen once the envelope is opened. That is
before each use of a secret; what is only read, or holds no secret, is believed. Pure, but for the random nonce of each
seal.
"""

import base64
import binascii
import hashlib
import os
from typing import Final, Protocol

import msgspec

from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.common.secret import Secret

__all__ = ["KEY_BYTES", "PLAIN", "Envelope", "Key", "Keys", "NoKeys", "Part", "SealedSecret", "seal"]

KEY_BYTES: Final = 32
"""Of AES-256."""

_NONCE_BYTES: Final = 12
_KEY_ID_HEX: Final = 16
_CONTEXT: Final = b"refresher envelope %d\0"
_CHANGED: Final = "it was changed after it was sealed"


class Key:
    """A key; its ``id`` is in the clear in each envelope, and says nothing of the key."""

    __slots__ = ("_cipher", "id")

    def __init__(self, key: bytes) -> None:
        # The library takes 60 ms to import: what opens nothing does not need it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(key) != KEY_BYTES:
            raise ValueError(f"it has {len(key)} bytes, and not {KEY_BYTES}")
        self.id: Final = hashlib.sha256(b"refresher key id\0" + key).hexdigest()[:_KEY_ID_HEX]
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def __reduce__(self) -> str:
        raise TypeError("a key cannot be pickled")

    def encrypt(self, nonce: bytes, plain: bytes, clear: bytes) -> bytes:
        """Return ``plain`` encrypted and authenticated, together with ``clear``."""
        return self._cipher.encrypt(nonce, plain, clear)

    def decrypt(self, nonce: bytes, sealed: bytes, clear: bytes) -> bytes:
        """Return what was sealed. Raises ``GrantFileError`` if anything was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(nonce, sealed, clear)
        except InvalidTag:
            raise GrantFileError("it was changed after it was sealed, or belongs to another name") from None


class Keys(Protocol):
    """The keys of a process; they are read when they are needed."""

    def current(self) -> Key | None:
        """Return the key of each write; ``None``: writes are plain. Raises ``KeyUnavailable``."""

    def find(self, key_id: str) -> Key:
        """Return the key that opens what has ``key_id``. Raises ``KeyUnavailable``."""


class NoKeys:
    """No key: writes are plain, and nothing that is sealed can be opened."""

    def current(self) -> Key | None:
        """Return none."""
        return None

    def find(self, key_id: str) -> Key:
        """Raise ``KeyUnavailable``."""
        raise KeyUnavailable(f"it is sealed with the key {key_id}, and no encryption_key is configured")


PLAIN: Final = NoKeys()


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An envelope on the disk; nonce and data are base64."""

    clear: msgspec.Raw
    nonce: str
    data: str


class Part:
    """The sealed part of one envelope: it is opened when a secret is needed, and once."""

    __slots__ = ("_envelope", "_keys", "_plain", "_version", "key_id", "token_file")

    def __init__(
        self, envelope: Envelope, version: int, key_id: str, keys: Keys, token_file: str | None = None
    ) -> None:
        self._envelope = envelope
        self._version = version
        self._keys = keys
        self._plain: bytes | None = None
        self.key_id: Final = key_id
        self.token_file: Final = token_file
        """The SHA-256 of the token file that the record calls for, in hex; ``None`` if it calls for none."""

    @property
    def is_open(self) -> bool:
        """Whether the secrets are known here."""
        return self._plain is not None

    def require_key(self) -> None:
        """Raise ``KeyUnavailable`` if its key is not here; it opens nothing."""
        if self._plain is None:
            self._keys.find(self.key_id)

    def open(self) -> bytes:
        """Return what is sealed. Raises ``KeyUnavailable``, and ``GrantFileError`` if it was changed."""
        if self._plain is None:
            sealed = self._envelope
            key = self._keys.find(self.key_id)
            clear = _CONTEXT % self._version + bytes(sealed.clear)
            # The library raises other errors for a nonce of another length.
            if len(nonce := _bytes(sealed.nonce)) != _NONCE_BYTES:
                raise GrantFileError(_CHANGED)
            self._plain = key.decrypt(nonce, _bytes(sealed.data), clear)
        return self._plain


class SealedSecret(Secret):
    """A secret in an envelope; ``reveal()`` opens it, and raises what ``Part.open`` raises."""

    __slots__ = ("_fingerprint", "_number", "part")

    def __init__(self, part: Part, number: int) -> None:
        super().__init__("")
        self.part: Final = part
        self._number = number
        self._fingerprint: str | None = None

    def reveal(self) -> str:
        """Return the text."""
        if not self._text:
            try:
                self._text = _TEXTS.decode(self.part.open())[self._number]
            except (msgspec.MsgspecError, IndexError):
                raise GrantFileError("it was not sealed by refresher") from None
        return self._text

    def fingerprint(self) -> str:
        """Return the fingerprint: that of the clear part, or of the text."""
        return self._fingerprint or super().fingerprint()

    def identify(self, fingerprint: str) -> None:
        """Note the fingerprint that the clear part gives."""
        self._fingerprint = fingerprint


_TEXTS: Final = msgspec.json.Decoder(tuple[str, ...])


def seal(key: Key, version: int, clear: bytes, plain: bytes) -> bytes:
    """Return the JSON of an envelope around ``plain``; ``clear`` is JSON that names the id of ``key``."""
    nonce = os.urandom(_NONCE_BYTES)
    sealed = key.encrypt(nonce, plain, _CONTEXT % version + clear)
    return msgspec.json.encode(Envelope(msgspec.Raw(clear), _text(nonce), _text(sealed)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    # The unused bits at the end of base64 must not be free: an envelope has one form.
    if not data or _text(data) != text:
        raise GrantFileError(_CHANGED)
    return data
