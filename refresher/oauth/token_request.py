"""What is sent to a token endpoint (RFC 6749 sections 2.3, 4.4 and 6): a body and its headers."""

from base64 import b64encode
from typing import assert_never
from urllib.parse import quote_plus, urlencode

from refresher import __version__
from refresher.common.errors import ConfigError
from refresher.common.secret import Secret
from refresher.grants import server_behavior
from refresher.grants.record import Grant

__all__ = ["authenticated", "request"]

_JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def request(grant: Grant, now: float) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of the token request of ``grant``; ``now``: epoch seconds.

    Raises ``ConfigError`` where the key that signs it cannot be used.
    """
    if grant.refresh_token is None:
        fields = {"grant_type": "client_credentials"}
    else:
        fields = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token.reveal()}
    if (scope := server_behavior.scope(grant)) is not None:
        fields["scope"] = scope
    if grant.resource is not None and server_behavior.sends_resource(grant):
        fields["resource"] = grant.resource
    return authenticated(grant, fields, now)


def authenticated(client: Grant, fields: dict[str, str], now: float) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request that brings ``fields`` and proves who the client is.

    Raises ``ConfigError`` where the key that signs it cannot be used.
    """
    # client_id goes along with Basic too: the MCP SDK's servers look for it there, and no server minds.
    fields = {"client_id": client.client_id, **fields}
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"refresher/{__version__}",
    }
    match client.token_endpoint_auth_method:
        case "none" | "tls_client_auth" | "self_signed_tls_client_auth":
            pass  # RFC 8705 section 2: the certificate speaks
        case "client_secret_basic":
            headers["Authorization"] = _basic(client.client_id, _secret(client))
        case "client_secret_post":
            fields["client_secret"] = _secret(client).reveal()
        case "private_key_jwt":
            from refresher.oauth.client_assertion import client_assertion  # cryptography: no other method needs it

            fields |= {"client_assertion_type": _JWT_BEARER, "client_assertion": client_assertion(client, now)}
        case _:
            assert_never(client.token_endpoint_auth_method)
    return urlencode(fields).encode("ascii"), headers


def _secret(grant: Grant) -> Secret:
    if grant.client_secret is None:
        raise ConfigError(f"{grant.token_endpoint_auth_method} needs a client_secret")
    return grant.client_secret


def _basic(client_id: str, client_secret: Secret) -> str:
    # RFC 6749 section 2.3.1: both parts are form-encoded first.
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret.reveal())}".encode("ascii")
    return f"Basic {b64encode(pair).decode('ascii')}"
