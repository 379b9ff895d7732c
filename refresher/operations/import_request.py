"""What a person brings to an import: JSON, checked as far as it can be without looking at what is stored."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, cast, get_args

import msgspec

from refresher.common import durations
from refresher.common.clocks import Moment
from refresher.common.errors import ConfigError, ImportRefused
from refresher.common.secret import Secret
from refresher.grants.record import NOTHING, AuthMethod, Grant, decode_secret
from refresher.oauth import urls
from refresher.oauth.token_response import LONGEST_LIFE, is_token, jwt_time, scheme, usable_from
from shim._token import is_name

__all__ = ["Brought", "check_name", "parse"]

_SECRET_METHODS: Final = ("client_secret_basic", "client_secret_post")
_TLS_METHODS: Final = ("tls_client_auth", "self_signed_tls_client_auth")
_METHODS: Final = get_args(AuthMethod)
_PRINTABLE: Final = (
    "client_id",
    "refresh_token",
    "client_secret",
    "private_key_id",
    "token_endpoint_auth_signing_alg",
    "access_token",
    "token_type",
    "scope",
    "resource",
)


class Brought(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON that ``import`` takes."""

    token_endpoint: str
    client_id: str
    refresh_token: Secret | None = None
    grant_type: str = "refresh_token"
    server_url: str | None = None
    origins: list[str] | None = None
    client_secret: Secret | None = None
    token_endpoint_auth_method: str | None = None
    private_key_file: str | None = None
    private_key_id: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    access_token: Secret | None = None
    token_type: str = "Bearer"  # noqa: S105  a token type, no password
    id_token: Secret | None = None
    """Comes with many token responses, and is of no use here."""
    expires_at: float | None = None
    expires_in: float | None = None
    scope: str | None = None
    issuer: str | None = None
    revocation_endpoint: str | None = None
    resource: str | None = None
    send_resource: bool | None = None
    replay: str | None = None
    max_age: float | str | None = None


def check_name(name: str) -> None:
    """Raise ``ImportRefused`` where ``name`` cannot name a grant."""
    if not is_name(name):
        raise ImportRefused(
            "a name is 1 to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit"
        )


def parse(name: str, data: bytes, now: Moment) -> Grant:
    """Return the grant that ``data`` describes, as generation 0.

    Raises ``ImportRefused`` for what is missing, unknown or unsafe; no message repeats a value.
    """
    check_name(name)
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if unknown := sorted(keys.keys() - set(Brought.__struct_fields__)):
            _refuse(f"unknown keys: {', '.join(unknown)} (known: {', '.join(Brought.__struct_fields__)})")
        brought = msgspec.json.decode(data, type=Brought, dec_hook=decode_secret)
    except UnicodeDecodeError:
        raise ImportRefused("the import is not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ImportRefused(f"the import is not usable: {error}") from None
    for key in _PRINTABLE:
        _printable(key, getattr(brought, key))
    if " " in brought.token_type or (brought.access_token is not None and " " in brought.access_token.reveal()):
        _refuse("access_token and token_type must hold no space (RFC 6750 section 2.1)")
    if brought.send_resource and brought.resource is None:
        _refuse("send_resource needs a resource")
    origins = tuple(dict.fromkeys(_url(urls.origin, "origins", origin) for origin in brought.origins or ()))
    if brought.server_url is not None:
        origins = origins or (_url(urls.origin, "server_url", brought.server_url),)
    if not origins:
        _refuse("needs server_url (the MCP server or API that takes the token), or origins")
    for key in ("issuer", "revocation_endpoint"):
        if (address := getattr(brought, key)) is not None:
            _url(urls.endpoint, key, address)
    expires_at = _expires_at(brought, now)
    method = _method(brought)
    grant = Grant(
        name=name,
        grant_id=uuid.uuid4().hex,
        generation=0,
        begun_from=NOTHING,
        issuer=brought.issuer,
        token_endpoint=_url(urls.endpoint, "token_endpoint", brought.token_endpoint),
        revocation_endpoint=brought.revocation_endpoint,
        client_id=brought.client_id,
        client_secret=brought.client_secret,
        token_endpoint_auth_method=method,
        private_key_file=_path(brought.private_key_file),
        private_key_id=brought.private_key_id,
        token_endpoint_auth_signing_alg=brought.token_endpoint_auth_signing_alg,
        client_cert=_path(brought.client_cert),
        client_key=_path(brought.client_key),
        refresh_token=brought.refresh_token,
        scope=brought.scope,
        asked_scope=brought.scope,
        resource=brought.resource,
        send_resource=brought.send_resource,
        server_url=brought.server_url,
        origins=origins,
        replay=_replay(brought.replay),
        max_age=None if brought.max_age is None else _duration("max_age", brought.max_age),
        access_token=brought.access_token,
        token_type=scheme(brought.token_type),
        issued_at=now.wall,
        issued=now,
        expires_at=expires_at,
        authorized_at=now.wall,
        not_before=None if brought.refresh_token is None else usable_from(brought.refresh_token.reveal(), now.wall),
    )
    _try_files(grant, now.wall)
    return grant


def _refuse(why: str) -> NoReturn:
    raise ImportRefused(why)


def _printable(key: str, value: str | Secret | None) -> None:
    # RFC 6749 appendix A: printable ASCII; a stray line end from a copied file would go into a header.
    if isinstance(value, Secret):
        value = value.reveal()
    if value is not None and not is_token(value):
        _refuse(f"{key} must be printable ASCII and not empty")


def _url(check: Callable[[str], str], key: str, value: str) -> str:
    try:
        return check(value)
    except urls.BadURL as error:
        raise ImportRefused(f"{key} {error}") from None


def _method(brought: Brought) -> AuthMethod:
    """Return how the client proves itself, from what was said, or else from what it was given to do it with."""
    if (brought.grant_type == "refresh_token") != (brought.refresh_token is not None):
        _refuse('needs a refresh_token, or else grant_type "client_credentials", and not both')
    if brought.grant_type not in ("refresh_token", "client_credentials"):
        _refuse("grant_type must be 'refresh_token' or 'client_credentials'")
    if brought.client_secret is not None:
        means: tuple[str, ...] = _SECRET_METHODS
    elif brought.private_key_file is not None:
        means = ("private_key_jwt",)
    else:
        means = ("none",) if brought.client_cert is None else (*_TLS_METHODS, "none")
    method = brought.token_endpoint_auth_method or means[0]
    if method not in _METHODS:
        _refuse(f"token_endpoint_auth_method must be one of {', '.join(_METHODS)}")
    if method not in means or (brought.client_secret is not None and brought.private_key_file is not None):
        _refuse(
            "token_endpoint_auth_method must go together with what it needs: client_secret, private_key_file, or "
            "client_cert (and client_key); 'none' is for a client without any"
        )
    if brought.client_key is not None and brought.client_cert is None:
        _refuse("client_key needs a client_cert")
    if brought.private_key_file is None and (brought.private_key_id or brought.token_endpoint_auth_signing_alg):
        _refuse("private_key_id and token_endpoint_auth_signing_alg are about a private_key_file; bring it too")
    if brought.refresh_token is None and method == "none":
        _refuse("client_credentials are for clients that prove themselves (RFC 6749 section 4.4)")
    return cast("AuthMethod", method)


def _path(value: str | None) -> str | None:
    # From where a person stands now: the daemon stands elsewhere.
    try:
        return None if value is None else str(Path(value).expanduser().absolute())
    except (RuntimeError, OSError) as error:
        raise ImportRefused(f"{value}: {error}") from None


def _try_files(grant: Grant, now: float) -> None:
    """Refuse files that could never be used: now a person is there who can help."""
    try:
        if grant.private_key_file is not None:
            from refresher.oauth.client_assertion import client_assertion  # cryptography: no other import needs it

            client_assertion(grant, now)
        if grant.client_cert is not None:
            from refresher.oauth.tls import trusted  # httpx, likewise

            trusted(None, client_cert=grant.client_cert, client_key=grant.client_key)
    except ConfigError as error:
        raise ImportRefused(str(error)) from None


def _expires_at(brought: Brought, now: Moment) -> float | None:
    if brought.expires_at is not None and brought.expires_in is not None:
        _refuse("give expires_at (epoch seconds) or expires_in (seconds from now), not both")
    if brought.access_token is None:
        if brought.expires_at is not None or brought.expires_in is not None:
            _refuse("expires_at and expires_in are about an access_token; bring it too, or leave them out")
        return None
    if brought.expires_in is not None:
        ends: float | None = now.wall + max(brought.expires_in, 0.0)
    elif brought.expires_at is None:
        ends = jwt_time(brought.access_token.reveal(), "exp")
    else:
        ends = brought.expires_at
    if ends is not None and not 0 <= ends - now.wall + LONGEST_LIFE <= 2 * LONGEST_LIFE:
        _refuse("expires_at must be epoch seconds (not milliseconds), expires_in seconds, within ten years")
    return ends


def _replay(value: str | None) -> float | msgspec.UnsetType | None:
    if value is None:
        return msgspec.UNSET
    if value == "none":
        return 0.0
    return None if value == "unlimited" else _duration("replay", value)


def _duration(key: str, value: float | str) -> float:
    seconds = 0.0
    with suppress(ValueError):
        seconds = durations.parse(value)
    if seconds == 0:
        besides = {"max_age": "seconds, or", "replay": "'none', 'unlimited', or"}[key]
        _refuse(f"{key} must be {besides} a duration such as '30s', '10m', '8h'")
    return seconds
