"""``private_key_jwt``: a client proves itself by a signature (RFC 7523 section 2.2, OpenID Connect Core section 9)."""

import uuid
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from refresher.common.errors import ConfigError
from refresher.grants.record import Grant

__all__ = ["client_assertion"]

_LIFE: Final = 60
"""Seconds: it is used at once. Servers refuse what lives longer than they keep a ``jti``."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def client_assertion(grant: Grant, now: float) -> str:
    """Return a fresh assertion, signed with the key file of ``grant``; ``now``: epoch seconds.

    Raises ``ConfigError`` where the key cannot be read or does not fit the algorithm; no message repeats the key.
    """
    path = grant.private_key_file or ""
    try:
        key: Any = load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the private key {path}: {error.strerror}") from None
    except Exception:  # noqa: BLE001  a library's words could quote the file
        raise ConfigError(f"the private key {path} is no PEM of a private key without a passphrase") from None
    algorithm = grant.token_endpoint_auth_signing_alg or _algorithm(key)
    claims = {
        "iss": grant.client_id,
        "sub": grant.client_id,
        # RFC 7523bis: the issuer, so that no other server can use it; the token endpoint where no issuer is known.
        "aud": grant.issuer or grant.token_endpoint,
        "iat": int(now),
        "exp": int(now) + _LIFE,
        "jti": uuid.uuid4().hex,
    }
    headers = None if grant.private_key_id is None else {"kid": grant.private_key_id}
    try:
        return jwt.encode(claims, key, algorithm=algorithm, headers=headers)
    except Exception:  # noqa: BLE001  likewise
        raise ConfigError(f"the private key {path} cannot sign with {algorithm}") from None


def _algorithm(key: Any) -> str:
    if isinstance(key, EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name, "ES256")
    if isinstance(key, Ed25519PrivateKey | Ed448PrivateKey):
        return "EdDSA"
    return "RS256" if isinstance(key, RSAPrivateKey) else "unknown"
