"""What a person asks a login for: the options of the command line, checked as far as they can be by themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from refresher.common.errors import ConfigError
from refresher.grants.record import AuthMethod, Grant, Way
from refresher.oauth import urls
from refresher.oauth.token_response import is_token

__all__ = ["Asked", "checked", "continued"]

_ENDPOINTS: Final = (
    "issuer",
    "authorization_endpoint",
    "token_endpoint",
    "device_authorization_endpoint",
    "revocation_endpoint",
)
_FILES: Final = ("client_secret_file", "private_key_file", "client_cert", "client_key")
_PROVEN_BY: Final = {
    "client_secret_basic": "client_secret_file",
    "client_secret_post": "client_secret_file",
    "private_key_jwt": "private_key_file",
    "tls_client_auth": "client_cert",
    "self_signed_tls_client_auth": "client_cert",
}
_OF_A_CLIENT: Final = (*_FILES, "auth_method", "private_key_id")
_OURS: Final = ("client_id", "code_challenge", "code_challenge_method", "redirect_uri", "response_type", "state")
_TEXTS: Final = ("client_id", "scope", "resource", "private_key_id")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One login as it was asked for; ``None`` where nothing was said."""

    url: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    client_metadata: str | None = None
    """The address of a client metadata document, which then is the ``client_id``."""
    new_client: bool = False
    auth_method: AuthMethod | None = None
    private_key_file: str | None = None
    private_key_id: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    issuer: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    scope: str | None = None
    resource: str | None = None
    """RFC 8707; "none" leaves it out."""
    params: tuple[tuple[str, str], ...] = ()
    redirect_uri: str | None = None
    """On this machine; ``None`` is a free port of it."""
    way: Way | None = None

    @property
    def names_endpoints(self) -> bool:
        """Whether a person says where things are, because no metadata does."""
        return self.token_endpoint is not None


def checked(asked: Asked) -> Asked:
    """Return it with its files' whole paths. Raises ``ConfigError`` for what cannot be meant."""
    if asked.url is not None:
        _check(urls.origin, "URL", asked.url)
    for key in _ENDPOINTS:
        if (address := getattr(asked, key)) is not None:
            _check(urls.endpoint, _option(key), address)
    if asked.redirect_uri is not None:
        _check(_loopback, "--redirect-uri", asked.redirect_uri)
    for key in _TEXTS:
        if (text := getattr(asked, key)) is not None and not is_token(text):
            _refuse(f"{_option(key)} must be printable ASCII and not empty")
    if asked.client_id is None and (alone := next((key for key in _OF_A_CLIENT if getattr(asked, key)), None)):
        _refuse(f"{_option(alone)} is about a --client-id; give it too")
    if (file := _PROVEN_BY.get(asked.auth_method or "")) and getattr(asked, file) is None:
        _refuse(f"--auth-method {asked.auth_method} needs {_option(file)}")
    if asked.way == "client_credentials" and asked.client_id is None:
        _refuse("--client-credentials needs a --client-id that proves itself (RFC 6749 section 4.4)")
    if asked.authorization_endpoint is not None and not asked.names_endpoints:
        _refuse("--authorization-endpoint needs a --token-endpoint")
    places = (asked.authorization_endpoint, asked.device_authorization_endpoint)
    if asked.names_endpoints and not any(places) and asked.way != "client_credentials":
        _refuse("--token-endpoint needs an --authorization-endpoint, or --device-authorization-endpoint")
    if asked.names_endpoints and asked.client_id is None:
        _refuse("--token-endpoint needs a --client-id: without metadata, no client can be registered")
    for key, value in asked.params:
        if key in _OURS or not is_token(key) or not is_token(value):
            _refuse(f"--param must be KEY=VALUE in printable ASCII, and none of {', '.join(_OURS)}")
    # From where a person stands now: the daemon stands elsewhere.
    paths = {key: str(Path(path).expanduser().absolute()) for key in _FILES if (path := getattr(asked, key))}
    return msgspec.structs.replace(asked, **paths)


def continued(asked: Asked, stored: Grant | None) -> Asked:
    """Return it with what the grant that is there was logged in with, where nothing else is said.

    Nothing of it is meant for another server.
    """
    if stored is None or (asked.url and stored.server_url and urls.origin(asked.url) != urls.origin(stored.server_url)):
        return asked
    asked = msgspec.structs.replace(asked, url=asked.url or stored.server_url)
    before = stored.login
    if before is None:
        return asked
    if before.endpoints_given and asked.issuer is None and not asked.names_endpoints:
        asked = msgspec.structs.replace(
            asked,
            issuer=stored.issuer,
            authorization_endpoint=before.authorization_endpoint,
            token_endpoint=stored.token_endpoint,
            device_authorization_endpoint=before.device_authorization_endpoint,
            revocation_endpoint=asked.revocation_endpoint or stored.revocation_endpoint,
        )
    elif before.issuer_given and asked.issuer is None and not asked.names_endpoints:
        asked = msgspec.structs.replace(asked, issuer=stored.issuer)
    return msgspec.structs.replace(
        asked,
        scope=asked.scope or before.scope,
        resource=asked.resource or before.resource,
        params=asked.params or before.params,
        way=asked.way or before.way,
    )


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _check(check: Callable[[str], str], key: str, value: str) -> None:
    try:
        check(value)
    except urls.BadURL as error:
        raise ConfigError(f"{key} {error}") from None


def _loopback(address: str) -> str:
    parts = urlsplit(urls.endpoint(address))
    if parts.scheme != "http" or not urls.is_loopback(parts.hostname or "") or not parts.port:
        raise urls.BadURL("must lead to a port of this machine, as in http://127.0.0.1:8765/callback (RFC 8252)")
    return address


def _refuse(why: str) -> NoReturn:
    raise ConfigError(why)
