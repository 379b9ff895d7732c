"""The client of a login: given by the person, stored, a metadata document, or newly registered (RFC 7591)."""

import json
from typing import Any, Final, Literal, cast

import httpx2
import msgspec
from mcp.client.auth import OAuthRegistrationError
from mcp.client.auth.oauth2 import check_registration_usable
from mcp.client.auth.utils import handle_registration_response, is_valid_client_metadata_url

from refresher.common.errors import ConfigError, LoginRefused
from refresher.common.reading import read_named
from refresher.common.secret import Secret, mask
from refresher.grants.record import AuthMethod, Grant
from refresher.grants.tokens import is_token
from refresher.login.discovery import Server
from refresher.login.http_client import Fetch, check_available
from refresher.login.options import LoginOptions, shared_fields
from refresher.oauth import urls

__all__ = ["DEVICE_CODE", "Client", "given_client", "register", "stored_client"]

DEVICE_CODE: Final = "urn:ietf:params:oauth:grant-type:device_code"

_SECRET_METHODS: Final[tuple[AuthMethod, ...]] = ("client_secret_basic", "client_secret_post")
_PREFERRED_METHODS: Final = ("none", *reversed(_SECRET_METHODS))
_MAX_SECRET: Final = 64 * 1024
_UNUSED_REDIRECT_URI: Final = "http://127.0.0.1/callback"
_REGISTRATION_MEMBERS: Final = ("client_id", "client_secret", "client_secret_expires_at", "token_endpoint_auth_method")
_CREATE_CLIENT: Final = (
    "nothing was changed. Create a client in its settings (a native or desktop application), and give --client-id"
)


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client, and how it authenticates itself. Its fields have the names that they have in a grant."""

    origin: Literal["given", "metadata_document", "registered"]
    client_id: str
    client_secret: Secret | None = None
    token_endpoint_auth_method: AuthMethod = "none"  # noqa: S105  a method, no password
    private_key_file: str | None = None
    private_key_id: str | None = None
    client_assertion_file: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    client_expires_at: float | None = None
    redirect_uri: str | None = None


def given_client(options: LoginOptions, server: Server) -> Client | None:
    """Return the client that the person gives: an id, or a metadata document if the server accepts one.

    Returns ``None`` without either. Raises ``ConfigError`` for a file that cannot be used.
    """
    if options.client_id is None and options.client_assertion_file is None:
        document = options.client_metadata
        if document is None or not server.takes_metadata_documents:
            return None
        if not is_valid_client_metadata_url(document):
            raise ConfigError("--client-metadata must be an https URL with a path")
        return Client(origin="metadata_document", client_id=document)
    secret = None if options.client_secret_file is None else _read_secret(options.client_secret_file)
    return Client(
        **shared_fields(options, Client) | {"client_id": options.client_id or ""},
        origin="given",
        client_secret=secret,
        token_endpoint_auth_method=options.auth_method or _auth_method(options, secret, server),
    )


def stored_client(stored: Grant | None, server: Server, now: float) -> Client | None:
    """Return the client of the stored grant, if it belongs to this server and has not expired."""
    if stored is None or not (stored.client_id or stored.client_assertion_file):
        return None  # a workload without a client
    if stored.issuer:
        same = stored.issuer == server.issuer
    else:
        # The token endpoint alone proves nothing: a server can name that of another one, and get the secret.
        same = stored.token_endpoint == server.token_endpoint and (
            server.issuer is None or urls.parse_origin(server.issuer) == urls.parse_origin(server.token_endpoint)
        )
    login = stored.login
    if not same or (login is not None and login.client_expires_at is not None and login.client_expires_at <= now):
        return None
    fields = shared_fields(stored, Client)
    if login is None:
        return Client(**fields, origin="given")
    return Client(**fields, **shared_fields(login, Client), origin=login.client)


async def register(server: Server, redirect_uri: str | None, fetch: Fetch) -> Client:
    """Register a client (RFC 7591). Raises ``LoginRefused`` if the server refuses, and ``ServerAway``."""
    endpoint = server.registration_endpoint
    if endpoint is None:
        raise LoginRefused(
            f"{server.issuer or server.token_endpoint} has no client registration; {_CREATE_CLIENT}, with "
            "--client-secret-file if it has a secret"
        )
    response = await fetch(httpx2.Request("POST", endpoint, json=_client_metadata(server, redirect_uri)))
    check_available(response)
    try:
        registration = await handle_registration_response(_cleaned(response))
        check_registration_usable(registration)
    except OAuthRegistrationError as error:
        text = mask(str(error).removeprefix("Registration failed: "))
        if text.startswith("Invalid"):
            text = "its answer is not a registration"
        raise LoginRefused(f"{endpoint} refused the client registration: {text}; {_CREATE_CLIENT}") from None
    secret = registration.client_secret
    method = registration.token_endpoint_auth_method or ("none" if secret is None else _secret_method(server))
    if not is_token(registration.client_id) or not (secret is None or is_token(secret)):
        raise LoginRefused(
            f"{endpoint} registered a client whose id or secret is not printable ASCII; {_CREATE_CLIENT}"
        )
    return Client(
        origin="registered",
        client_id=registration.client_id,
        client_secret=None if secret is None or method not in _SECRET_METHODS else Secret(secret),
        token_endpoint_auth_method=cast("AuthMethod", method),
        client_expires_at=registration.client_secret_expires_at or None,  # 0: never
        redirect_uri=redirect_uri,
    )


def _cleaned(response: httpx2.Response) -> httpx2.Response:
    """Return a registration with only the members that are used; some servers write an id as a number."""
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError):
        return response
    if not response.is_success or not isinstance(document, dict):
        return response
    known = {key: document[key] for key in _REGISTRATION_MEMBERS if key in document}
    for key in ("client_id", "client_secret"):
        if isinstance(number := known.get(key), int) and not isinstance(number, bool):
            known[key] = str(number)
    return httpx2.Response(response.status_code, json=known, request=response.request)


def _client_metadata(server: Server, redirect_uri: str | None) -> dict[str, Any]:
    """Return the client metadata of a native application, which cannot keep a secret (RFC 8252 section 8.4)."""
    device_code = () if server.device_authorization_endpoint is None else (DEVICE_CODE,)
    metadata = {
        "client_name": "refresher",
        "application_type": "native",
        "grant_types": ("authorization_code", "refresh_token", *device_code),
        # Servers require a redirect address, also for a login without a redirect.
        "redirect_uris": (redirect_uri or _UNUSED_REDIRECT_URI,),
        "response_types": ("code",),
        "scope": server.scope,
        "token_endpoint_auth_method": next((m for m in _PREFERRED_METHODS if m in (server.auth_methods or ())), None),
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _auth_method(options: LoginOptions, secret: Secret | None, server: Server) -> AuthMethod:
    """Return the authentication method for the given secret or key."""
    if secret is not None:
        return _secret_method(server)
    if options.private_key_file is not None or options.client_assertion_file is not None:
        return "private_key_jwt"
    return "none" if options.client_cert is None else "tls_client_auth"


def _secret_method(server: Server) -> AuthMethod:
    """Return the method for a secret where nobody named one."""
    # With Basic, some servers refuse client_id in the body, and others require it there; the other method has no such
    # conflict. RFC 8414 section 2: without metadata, the default is client_secret_basic.
    methods = server.auth_methods or ("client_secret_basic",)
    only_basic = "client_secret_basic" in methods and "client_secret_post" not in methods
    return "client_secret_basic" if only_basic else "client_secret_post"


def _read_secret(path: str) -> Secret:
    try:
        text = read_named(path, _MAX_SECRET).data.decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the client secret in {path}: {error.strerror}") from None
    except ValueError:
        text = ""
    if not is_token(text):
        raise ConfigError(f"{path} must contain the client secret and nothing else: printable ASCII, not empty")
    return Secret(text)
