"""As which client a login goes: one that was given, one that is stored, a metadata document, or one registered now."""

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
from refresher.login.asked import Asked
from refresher.login.discovery import Fetching
from refresher.login.server import Server
from refresher.oauth import urls
from refresher.oauth.token_response import is_token

__all__ = ["DEVICE_GRANT", "Client", "given", "register", "stored_with"]

DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"

_SECRET_METHODS: Final[tuple[AuthMethod, ...]] = ("client_secret_basic", "client_secret_post")
_PREFERRED: Final = ("none", *_SECRET_METHODS)
_LARGEST_SECRET: Final = 64 * 1024
_GRANT_TYPES: Final = ("authorization_code", "refresh_token")
_NOWHERE: Final = "http://127.0.0.1/callback"
_MAKE_ONE: Final = "make one in its settings (a native or desktop application)"


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client, and how it proves itself."""

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
    """The one that it was registered with."""

    def comes_back_to(self, redirect_uri: str) -> bool:
        """Whether the server sends a browser there: of a client that a person made, only he can know."""
        return self.origin != "registered" or self.redirect_uri == redirect_uri


def given(asked: Asked, server: Server) -> Client | None:
    """Return the client that a person names, or whose metadata document the server takes; ``None`` without one.

    Raises ``ConfigError`` where its files cannot be used.
    """
    if asked.client_id is None:
        document = asked.client_metadata
        if document is None or not server.takes_metadata_documents:
            return None
        if not is_valid_client_metadata_url(document):
            raise ConfigError("--client-metadata must be an https address with a path")
        return Client(origin="metadata_document", client_id=document)
    secret = None if asked.client_secret_file is None else _secret(asked.client_secret_file)
    return Client(
        origin="given",
        client_id=asked.client_id,
        client_secret=secret,
        auth_method=asked.auth_method or _method(asked, secret, server),
        private_key_file=asked.private_key_file,
        private_key_id=asked.private_key_id,
        client_cert=asked.client_cert,
        client_key=asked.client_key,
    )


def stored_with(stored: Grant | None, server: Server, now: float) -> Client | None:
    """Return the client of the grant that is there, where this very server made it and still takes it."""
    if stored is None:
        return None
    same = stored.issuer == server.issuer if stored.issuer else _is_at_its_issuer(stored, server)
    before = stored.login
    expired = before is not None and before.client_expires_at is not None and before.client_expires_at <= now
    if not same or expired:
        return None
    return Client(
        origin="given" if before is None else before.client,
        client_id=stored.client_id,
        client_secret=stored.client_secret,
        auth_method=stored.token_endpoint_auth_method,
        private_key_file=stored.private_key_file,
        private_key_id=stored.private_key_id,
        signing_alg=stored.token_endpoint_auth_signing_alg,
        client_cert=stored.client_cert,
        client_key=stored.client_key,
        expires_at=None if before is None else before.client_expires_at,
        redirect_uri=None if before is None else before.redirect_uri,
    )


def _is_at_its_issuer(stored: Grant, server: Server) -> bool:
    """Whether a client of unknown issuer is this server's: no other one may learn its secret.

    Any server can name another's token endpoint in its metadata, and its own for all that is asked besides.
    """
    return stored.token_endpoint == server.token_endpoint and (
        server.issuer is None or urls.origin(server.issuer) == urls.origin(server.token_endpoint)
    )


async def register(server: Server, redirect_uri: str | None, scope: str | None, fetch: Fetching) -> Client:
    """Register a client (RFC 7591). Raises ``LoginRefused`` where the server does not, ``ServerAway``."""
    place = server.registration_endpoint
    if place is None:
        raise LoginRefused(
            f"{server.issuer or server.token_endpoint} registers no clients by itself: {_MAKE_ONE}, and give "
            "--client-id, with --client-secret-file where it has a secret"
        )
    answered = await fetch(httpx2.Request("POST", place, json=_about_us(server, redirect_uri, scope)))
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
        raise LoginRefused(f"{place} registered a client whose id or secret cannot be sent")
    return Client(
        origin="registered",
        client_id=made.client_id,
        client_secret=None if secret is None or method not in _SECRET_METHODS else Secret(secret),
        auth_method=cast("AuthMethod", method),
        expires_at=made.client_secret_expires_at or None,  # 0: never
        redirect_uri=redirect_uri,
    )


def _why(error: OAuthRegistrationError) -> str:
    words = str(error)
    return "its answer is no registration" if words.startswith("Invalid") else mask(words)


def _about_us(server: Server, redirect_uri: str | None, scope: str | None) -> dict[str, Any]:
    """Return the client metadata: a native application, which has no way to keep a secret (RFC 8252 section 8.4)."""
    about: dict[str, Any] = {
        "client_name": "refresher",
        "application_type": "native",
        "grant_types": [*_GRANT_TYPES],
        # Servers insist on one, also where nobody is ever redirected.
        "redirect_uris": [redirect_uri or _NOWHERE],
        "response_types": ["code"],
    }
    if server.device_authorization_endpoint is not None:
        about["grant_types"].append(DEVICE_GRANT)
    if scope:
        about["scope"] = scope
    methods = server.auth_methods
    if methods is not None and (method := next((known for known in _PREFERRED if known in methods), None)):
        about["token_endpoint_auth_method"] = method
    return about


def _method(asked: Asked, secret: Secret | None, server: Server) -> AuthMethod:
    """Return how the client proves itself, from what it was given to do it with."""
    if secret is not None:
        # RFC 8414 section 2: Basic where the server does not say.
        methods = server.auth_methods or _SECRET_METHODS
        return "client_secret_post" if _SECRET_METHODS[0] not in methods else "client_secret_basic"
    if asked.private_key_file is not None:
        return "private_key_jwt"
    return "none" if asked.client_cert is None else "tls_client_auth"


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
