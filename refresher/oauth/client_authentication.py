"""Authenticate the client to the authorization server (RFC 6749 section 2.3, RFC 7523, RFC 8705)."""

import os
import stat
import uuid
from base64 import b64encode
from typing import Any, Final, assert_never
from urllib.parse import quote_plus, urlencode

from refresher import __version__
from refresher.common.errors import ConfigError
from refresher.common.reading import read_named
from refresher.common.text import span
from refresher.grants.policy import CLOCK_TOLERANCE
from refresher.grants.record import Grant
from refresher.grants.tokens import is_token, jwt_claims, jwt_time

__all__ = ["TokenExpired", "TokenMissing", "build_request", "client_assertion", "token_in"]

_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_ASSERTION_LIFE: Final = 60
"""Seconds. An assertion is used at once. Servers refuse one that is valid for longer than they keep ``jti`` values."""

_MAX_TOKEN: Final = 256 * 1024
"""Bytes of a token in a file."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class TokenMissing(ConfigError):
    """The file of an assertion is missing, holds none, or holds one that another user could have put there."""


class TokenExpired(ConfigError):
    """The assertion in a file has expired."""


def build_request(client: Grant, fields: dict[str, str], now: float) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with ``fields``, authenticated as ``client``.

    ``now``: epoch seconds. Raises ``ConfigError`` if the key that signs the assertion cannot be used.
    """
    # Also with Basic: servers of the MCP SDK require client_id in the body. Most others ignore it, and some refuse it.
    is_basic = client.token_endpoint_auth_method == "client_secret_basic"  # noqa: S105  a method, no password
    if client.client_id and not (is_basic and client.omits_client_id):
        fields = {"client_id": client.client_id, **fields}
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"refresher/{__version__}",
    }
    match client.token_endpoint_auth_method:
        case "none" | "tls_client_auth" | "self_signed_tls_client_auth":
            pass  # RFC 8705 section 2: the TLS certificate authenticates the client
        case "client_secret_basic":
            # RFC 6749 section 2.3.1: both parts are form-encoded first.
            pair = f"{quote_plus(client.client_id)}:{quote_plus(_secret(client))}".encode("ascii")
            headers["Authorization"] = f"Basic {b64encode(pair).decode('ascii')}"
        case "client_secret_post":
            fields["client_secret"] = _secret(client)
        case "private_key_jwt":
            fields = fields | {"client_assertion_type": _JWT_BEARER, "client_assertion": client_assertion(client, now)}
        case _:
            assert_never(client.token_endpoint_auth_method)
    return urlencode(fields).encode("ascii"), headers


def client_assertion(grant: Grant, now: float) -> str:
    """Return an assertion that authenticates the client (RFC 7523 section 2.2).

    It is what somebody else has put into the file of ``grant``, or a new one, signed with its key file. ``now``: epoch
    seconds. Raises ``ConfigError`` if the key cannot be read or does not match the algorithm; no message
    repeats the key.
    """
    if grant.client_assertion_file is not None:
        return token_in(grant.client_assertion_file, "client assertion", now, is_jwt=True)
    # PyJWT and cryptography take 60 ms to import, and only this method needs them.
    import jwt
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = grant.private_key_file or ""
    try:
        key: Any = load_pem_private_key(read_named(path).data, password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the private key {path}: {error.strerror}") from None
    except Exception:  # noqa: BLE001  the library's message could quote the file
        raise ConfigError(f"the private key {path} is not a PEM private key without a passphrase") from None
    algorithm = grant.token_endpoint_auth_signing_alg or _algorithm(key)
    claims = {
        "iss": grant.client_id,
        "sub": grant.client_id,
        # RFC 7523bis: the issuer, so that no other server accepts it; the token endpoint if no issuer is known.
        "aud": grant.issuer or grant.token_endpoint,
        "iat": int(now),
        "exp": int(now) + _ASSERTION_LIFE,
        "jti": uuid.uuid4().hex,
    }
    headers = None if grant.private_key_id is None else {"kid": grant.private_key_id}
    try:
        return jwt.encode(claims, key, algorithm=algorithm, headers=headers)
    except Exception:  # noqa: BLE001  the library's message could quote the key
        raise ConfigError(f"the private key {path} cannot sign with {algorithm}") from None


def token_in(path: str, what: str, now: float, *, is_jwt: bool) -> str:
    """Return the token that somebody else keeps fresh in a file, for example the token of a Kubernetes service account.

    ``what``: what it is, for a person. ``now``: epoch seconds. ``is_jwt``: refuse another one, which may be a password
    in a wrong file. Also refuse a file that another user can change. Raises ``TokenMissing`` and ``TokenExpired``.
    """
    try:
        data, status = read_named(path, _MAX_TOKEN)
    except OSError as error:
        raise TokenMissing(f"cannot read the {what} {path}: {error.strerror}") from None
    if (others := _who_can_change(status)) is not None:
        raise TokenMissing(f"the {what} {path} {others}, so it is sent to nobody")
    text = data.decode("ascii", "replace").strip()
    if not is_token(text) or " " in text:
        raise TokenMissing(f"the {what} {path} is empty" if not text else f"the {what} {path} is not a token")
    if is_jwt and not jwt_claims(text):
        raise TokenMissing(f"the {what} {path} is no JWT (RFC 7519), so it is sent to nobody: give the right file")
    expires_at = jwt_time(text, "exp")
    if expires_at is not None and expires_at < now - CLOCK_TOLERANCE:
        raise TokenExpired(
            f"the {what} {path} expired {span(now - expires_at)} ago: whatever writes this file must renew it"
        )
    return text


def _who_can_change(status: os.stat_result) -> str | None:
    """Return why another user could have put the token into a file; ``None`` if only this user and root can.

    Its directory is not checked: that of a projected token in Kubernetes is open to all, with the sticky bit.
    """
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to the user {status.st_uid}: it must belong to the user of refresher or to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "any user" if status.st_mode & stat.S_IWOTH else f"the group {status.st_gid}"
        return f"can be changed by {who}: run 'chmod go-w' on it, or have whatever writes it do so"
    return None


def _algorithm(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name, "ES256")
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return "EdDSA"
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else "unknown"


def _secret(grant: Grant) -> str:
    if grant.client_secret is None:
        raise ConfigError(f"{grant.token_endpoint_auth_method} needs a client_secret")
    return grant.client_secret.reveal()
