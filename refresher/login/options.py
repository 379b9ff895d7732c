"""The options of a login, and the checks that need nothing but the options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from refresher.common.errors import ConfigError
from refresher.grants.assertion import Assertion
from refresher.grants.record import AuthMethod, Grant, LoginMethod, revealed
from refresher.grants.tokens import is_token
from refresher.oauth import urls
from refresher.oauth.params import RESERVED_IN_RENEWALS, RESERVED_IN_TOKEN_REQUESTS, are_renewal_params
from shim._token import is_name

__all__ = ["OFFLINE_ACCESS", "LoginOptions", "completed", "shared_fields", "validated"]

OFFLINE_ACCESS: Final = "offline_access"
"""The scope without which many servers issue no refresh token (OpenID Connect Core section 11)."""

_FILES: Final = (
    *("client_secret_file", "private_key_file", "client_assertion_file", "client_cert", "client_key"),
    "assertion_file",
)
_NEEDED_FILE: Final = {
    "client_secret_basic": "client_secret_file",
    "client_secret_post": "client_secret_file",
    "tls_client_auth": "client_cert",
    "self_signed_tls_client_auth": "client_cert",
}
_CLIENT_OPTIONS: Final = (
    *("client_secret_file", "private_key_file", "client_cert", "client_key", "auth_method", "private_key_id"),
)
_WITHOUT_AUTHORIZATION: Final = ("client_credentials", "jwt_bearer", "enterprise")
"""The ways of login that need no endpoint but that for tokens."""
_RESERVED_PARAMS: Final = (
    *RESERVED_IN_TOKEN_REQUESTS,
    "code_challenge",
    "code_challenge_method",
    "redirect_uri",
    "response_type",
    "state",
)
_TEXTS: Final = ("client_id", "scope", "resource", "private_key_id")


class LoginOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one login; ``None`` if the person did not give one."""

    url: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    client_metadata: str | None = None
    """The URL of a client metadata document; it is the ``client_id`` then."""
    new_client: bool = False
    auth_method: AuthMethod | None = None
    private_key_file: str | None = None
    private_key_id: str | None = None
    client_assertion_file: str | None = None
    assertion_file: str | None = None
    """With the way ``jwt_bearer``."""
    idp: str | None = None
    """The NAME of the grant at the identity provider, with the way ``enterprise``."""
    client_cert: str | None = None
    client_key: str | None = None
    issuer: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    """Given only with the other endpoints, for a server that publishes no metadata."""
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    scope: str | None = None
    resource: str | None = None
    """RFC 8707; "none" omits it."""
    scope_only: bool = False
    """Whether to request exactly ``scope``, also if the stored grant has more."""
    params: tuple[tuple[str, str], ...] = ()
    """An empty value leaves out a parameter that refresher would add."""
    refresh_params: tuple[tuple[str, str], ...] = ()
    assume_pkce: bool = False
    """Whether the server supports PKCE, although its metadata does not say so."""
    redirect_uri: str | None = None
    """On this machine; ``None``: any free port."""
    way: LoginMethod | None = None
    wait: float = 300.0
    """Seconds that the person has to log in."""
    no_browser: bool = False
    no_verify: bool = False
    """Whether to store the new token without trying it at the server."""
    replace: bool = False
    """Whether to replace a grant of this name that is for another server or account."""


def validated(options: LoginOptions) -> LoginOptions:
    """Return the options with absolute paths. Raises ``ConfigError`` for invalid or contradictory options."""
    endpoints = (key for key in LoginOptions.__struct_fields__ if key == "issuer" or key.endswith("_endpoint"))
    addresses: list[tuple[str, str | None, Callable[[str], str]]] = [
        ("URL", options.url, urls.parse_origin),
        *((_option(key), getattr(options, key), urls.check_endpoint) for key in endpoints),
        ("--redirect-uri", options.redirect_uri, _check_loopback),
    ]
    for option, address, check in addresses:
        try:
            if address is not None:
                check(address)
        except urls.InvalidURL as error:
            raise ConfigError(f"{option} {error}") from None
    for key in _TEXTS:
        if (text := getattr(options, key)) is not None and not is_token(text):
            raise ConfigError(f"{_option(key)} must be printable ASCII and not empty")
    if options.client_id is None and (alone := next((key for key in _CLIENT_OPTIONS if getattr(options, key)), None)):
        raise ConfigError(f"{_option(alone)} needs a --client-id")
    if (file := _NEEDED_FILE.get(options.auth_method or "")) and getattr(options, file) is None:
        raise ConfigError(f"--auth-method {options.auth_method} needs {_option(file)}")
    if options.auth_method == "private_key_jwt" and not (options.private_key_file or options.client_assertion_file):
        raise ConfigError("--auth-method private_key_jwt needs --private-key-file or --client-assertion-file")
    others = [key for key in ("client_secret_file", "private_key_file") if getattr(options, key)]
    if options.client_assertion_file and others:
        raise ConfigError(f"--client-assertion-file and {_option(others[0])} both authenticate the client: omit one")
    _check_way(options)
    if options.way == "client_credentials" and not (options.client_id or options.client_assertion_file):
        raise ConfigError("--client-credentials needs a --client-id that authenticates itself (RFC 6749 section 4.4)")
    if options.authorization_endpoint is not None and options.token_endpoint is None:
        raise ConfigError("--authorization-endpoint needs a --token-endpoint")
    starts = (options.authorization_endpoint, options.device_authorization_endpoint)
    if options.token_endpoint is not None and not any(starts) and options.way not in _WITHOUT_AUTHORIZATION:
        raise ConfigError("--token-endpoint needs an --authorization-endpoint or a --device-authorization-endpoint")
    if options.token_endpoint is not None and options.client_id is None and options.way != "jwt_bearer":
        raise ConfigError("--token-endpoint needs a --client-id: without metadata, no client can be registered")
    if options.scope_only and options.scope is None:
        raise ConfigError("--scope-only needs a --scope")
    for key, value in options.params:
        if key in _RESERVED_PARAMS or not is_token(key) or not (is_token(value) or value == ""):
            reserved = ", ".join(_RESERVED_PARAMS)
            raise ConfigError(f"--param must be KEY=VALUE in printable ASCII, and none of {reserved}")
    if not are_renewal_params(options.refresh_params):
        reserved = ", ".join(RESERVED_IN_RENEWALS)
        raise ConfigError(f"--refresh-param must be KEY=VALUE in printable ASCII, and none of {reserved}")
    # Absolute, because the daemon runs in another directory.
    paths = {key: str(Path(path).expanduser().absolute()) for key in _FILES if (path := getattr(options, key))}
    return msgspec.structs.replace(options, **paths)


def _check_way(options: LoginOptions) -> None:
    """Raise ``ConfigError`` if the options belong to several ways of login."""
    if options.assertion_file is not None and options.way != "jwt_bearer":
        raise ConfigError("--jwt-bearer is a way of login by itself: omit the other one")
    if options.idp is not None and options.way != "enterprise":
        raise ConfigError("--enterprise is a way of login by itself: omit the other one")
    if options.idp is not None and not is_name(options.idp):
        raise ConfigError("--enterprise needs the NAME of the grant at the identity provider")


def completed(options: LoginOptions, stored: Grant | None) -> LoginOptions:
    """Return the options, completed from the login of the stored grant if it is for the same server."""
    if stored is None:
        return options
    if options.url and stored.server_url and urls.parse_origin(options.url) != urls.parse_origin(stored.server_url):
        return options
    if options.scope is not None and not options.scope_only and options.issuer in (None, stored.issuer):
        # After 403 insufficient_scope (RFC 6750 section 3.1), a person asks for more, and must not lose the rest.
        granted = (stored.scope or stored.asked_scope or "").split()
        # Many servers do not list it in their answers, and issue no refresh token without it.
        granted += [word for word in (stored.asked_scope or "").split() if word == OFFLINE_ACCESS]
        options = msgspec.structs.replace(options, scope=" ".join(dict.fromkeys((*granted, *options.scope.split()))))
    login = stored.login
    known: dict[str, Any] = {"url": stored.server_url}
    if options.issuer in (None, stored.issuer):
        known["refresh_params"] = revealed(stored.refresh_params)
        known["assume_pkce"] = login is not None and login.assume_pkce
    if login is not None:
        known |= {key: getattr(login, key) for key in ("scope", "resource", "way")}
        known["params"] = revealed(login.params)
        if options.issuer is None and options.token_endpoint is None:
            if login.endpoints_given or login.issuer_given:
                known["issuer"] = stored.issuer
            if login.endpoints_given:
                known |= {key: getattr(stored, key) for key in ("token_endpoint", "revocation_endpoint")}
                known["authorization_endpoint"] = login.authorization_endpoint
                known["device_authorization_endpoint"] = login.device_authorization_endpoint
    found = msgspec.structs.replace(options, **{key: getattr(options, key) or value for key, value in known.items()})
    return found if stored.assertion is None else _with_assertion(found, stored.name, stored.assertion)


def _with_assertion(options: LoginOptions, name: str, assertion: Assertion) -> LoginOptions:
    """Return the options, completed from whose token the stored grant presents, also if it was imported."""
    path = assertion.subject.file if assertion.grant_type == "jwt_bearer" else None
    way: LoginMethod = "jwt_bearer" if assertion.idp is None else "enterprise"
    if options.way not in (None, way):
        return options
    if path is None and assertion.idp is None:
        if options.way is not None:
            return options
        # A browser would make another kind of grant of it.
        raise ConfigError(
            f"{name} presents the token of another grant, which no login describes: import it again with 'refresher "
            f"import {name} --replace --from FILE', or give the way of a login, for example --browser"
        )
    return msgspec.structs.replace(
        options, way=way, assertion_file=options.assertion_file or path, idp=options.idp or assertion.idp
    )


def shared_fields(source: msgspec.Struct, target: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of ``source`` that ``target`` has too."""
    return {key: getattr(source, key) for key in source.__struct_fields__ if key in target.__struct_fields__}


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _check_loopback(redirect_uri: str) -> str:
    parts = urlsplit(urls.check_endpoint(redirect_uri))
    if parts.scheme != "http" or not urls.is_loopback(parts.hostname or "") or not parts.port:
        raise urls.InvalidURL("must be a port of this machine, for example http://127.0.0.1:8765/callback (RFC 8252)")
    return redirect_uri
