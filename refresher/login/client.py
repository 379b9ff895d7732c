"""The client of a login: given by the person, stored, a metadata document, or registered now (RFC 7591)."""

from pathlib import Path
from typing import Any, Final, Literal, cast

import httpx2
import msgspec
from mcp.client.auth import OAuthRegistrationError
from mcp.client.auth.oauth2 import check_registration_usable
from mcp.client.auth.utils import handle_registration_response, is_valid_client_metadata_url

from refresher.common.errors import ConfigError, LoginRefused, ServerAway
from refresher.common.secret import Secret, mask
from refresher.grants.record import AuthMethod, Grant
from refresher.grants.tokens import is_token
from refresher.login.discovery import Fetch, Server
from refresher.login.options import LoginOptions
from refresher.oauth import urls

__all__ = ["DEVICE_CODE", "Client", "given_client", "register", "stored_client"]

DEVICE_CODE: Final = "urn:ietf:params:oauth:grant-type:device_code"

_SECRET_METHODS: Final[tuple[AuthMethod, ...]] = ("client_secret_basic", "client_secret_post")
_PREFERRED: Final = ("none", *_SECRET_METHODS)
_LARGEST_SECRET: Final = 64 * 1024
_GRANT_TYPES: Final = ("authorization_code", "refresh_token")
_NOWHERE: Final = "http://127.0.0.1/callback"
_MAKE_ONE: Final = "create a client in its settings (a native or desktop application)"


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client, and how it authenticates itself."""

    origin: Literal["given", "metadata_document", "registered"]
    client_id: str
    client_secret: Secret | None = None
    auth_method: AuthMethod = "none"
    private_key_file: str | None = None
    private_key_id: str | None = None
    signing_alg: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    expires_at: float | None = None
    redirect_uri: str | None = None
    """The one in its registration."""

    def accepts(self, redirect_uri: str) -> bool:
        """Whether the server redirects to it; a client that a person registered is assumed to fit."""
        return self.origin != "registered" or self.redirect_uri == redirect_uri


def given_client(options: LoginOptions, server: Server) -> Client | None:
    """Return the client of the options: an id, or a metadata document that the server takes; ``None`` without one.

    Raises ``ConfigError`` for a file that cannot be used.
    """
    if options.client_id is None:
        document = options.client_metadata
        if document is None or not server.takes_metadata_documents:
            return None
        if not is_valid_client_metadata_url(document):
            raise ConfigError("--client-metadata must be an https address with a path")
        return Client(origin="metadata_document", client_id=document)
    secret = None if options.client_secret_file is None else _secret(options.client_secret_file)
    return Client(
        origin="given",
        client_id=options.client_id,
        client_secret=secret,
        auth_method=options.auth_method or _method(options, secret, server),
        private_key_file=options.private_key_file,
        private_key_id=options.private_key_id,
        client_cert=options.client_cert,
        client_key=options.client_key,
    )


def stored_client(stored: Grant | None, server: Server, now: float) -> Client | None:
    """Return the client of the stored grant, if it is this server's and has not expired."""
    if stored is None:
        return None
    same = stored.issuer == server.issuer if stored.issuer else _is_at_its_issuer(stored, server)
    login = stored.login
    expired = login is not None and login.client_expires_at is not None and login.client_expires_at <= now
    if not same or expired:
        return None
    return Client(
        origin="given" if login is None else login.client,
        client_id=stored.client_id,
        client_secret=stored.client_secret,
        auth_method=stored.token_endpoint_auth_method,
        private_key_file=stored.private_key_file,
        private_key_id=stored.private_key_id,
        signing_alg=stored.token_endpoint_auth_signing_alg,
        client_cert=stored.client_cert,
        client_key=stored.client_key,
        expires_at=None if login is None else login.client_expires_at,
        redirect_uri=None if login is None else login.redirect_uri,
    )


def _is_at_its_issuer(stored: Grant, server: Server) -> bool:
    """Whether a client of unknown issuer belongs to this server: no other server may learn its secret.

    Any server can name the token endpoint of another one in its metadata.
    """
    return stored.token_endpoint == server.token_endpoint and (
        server.issuer is None or urls.parse_origin(server.issuer) == urls.parse_origin(server.token_endpoint)
    )


async def register(server: Server, redirect_uri: str | None, scope: str | None, fetch: Fetch) -> Client:
    """Register a client (RFC 7591). Raises ``LoginRefused`` where the server refuses, and ``ServerAway``."""
    place = server.registration_endpoint
    if place is None:
        raise LoginRefused(
            f"{server.issuer or server.token_endpoint} has no client registration: {_MAKE_ONE}, and give "
            "--client-id, with --client-secret-file if it has a secret"
        )
    answered = await fetch(httpx2.Request("POST", place, json=_client_metadata(server, redirect_uri, scope)))
    if answered.status_code >= 500 or answered.status_code == 429:
        raise ServerAway(f"{place} answered {answered.status_code}; try again later, nothing was changed")
    try:
        made = await handle_registration_response(answered)
        check_registration_usable(made)
    except OAuthRegistrationError as error:
        raise LoginRefused(
            f"{place} does not register refresher as a client: {_why(error)}; {_MAKE_ONE}, and give --client-id"
        ) from None
    secret = made.client_secret
    method = made.token_endpoint_auth_method or ("none" if secret is None else _SECRET_METHODS[0])
    if not is_token(made.client_id) or not (secret is None or is_token(secret)):
        raise LoginRefused(
            f"{place} registered a client whose id or secret is not printable ASCII: {_MAKE_ONE}, and give --client-id"
        )
    return Client(
        origin="registered",
        client_id=made.client_id,
        client_secret=None if secret is None or method not in _SECRET_METHODS else Secret(secret),
        auth_method=cast("AuthMethod", method),
        expires_at=made.client_secret_expires_at or None,  # 0: never
        redirect_uri=redirect_uri,
    )


def _why(error: OAuthRegistrationError) -> str:
    text = str(error)
    return "its answer is not a registration" if text.startswith("Invalid") else mask(text)


def _client_metadata(server: Server, redirect_uri: str | None, scope: str | None) -> dict[str, Any]:
    """Return the client metadata of a native application, which cannot keep a secret (RFC 8252 section 8.4)."""
    about: dict[str, Any] = {
        "client_name": "refresher",
        "application_type": "native",
        "grant_types": [*_GRANT_TYPES],
        # Servers require one, also for a login that redirects nobody.
        "redirect_uris": [redirect_uri or _NOWHERE],
        "response_types": ["code"],
    }
    if server.device_authorization_endpoint is not None:
        about["grant_types"].append(DEVICE_CODE)
    if scope:
        about["scope"] = scope
    methods = server.auth_methods
    if methods is not None and (method := next((known for known in _PREFERRED if known in methods), None)):
        about["token_endpoint_auth_method"] = method
    return about


def _method(options: LoginOptions, secret: Secret | None, server: Server) -> AuthMethod:
    """Return the authentication method that fits the secret or key that was given."""
    if secret is not None:
        # RFC 8414 section 2: Basic where the server does not say.
        methods = server.auth_methods or _SECRET_METHODS
        return "client_secret_post" if _SECRET_METHODS[0] not in methods else "client_secret_basic"
    if options.private_key_file is not None:
        return "private_key_jwt"
    return "none" if options.client_cert is None else "tls_client_auth"


def _secret(path: str) -> Secret:
    try:
        text = Path(path).read_bytes()[:_LARGEST_SECRET].decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the client secret {path}: {error.strerror}") from None
    except ValueError:
        text = ""
    if not is_token(text):
        raise ConfigError(f"{path} must hold the client secret and nothing else: printable ASCII, not empty")
    return Secret(text)
