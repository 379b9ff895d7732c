"""Completes a kept login by discovery: where its refresh token is sent, and for which resource."""

import json
from typing import Any

import msgspec
from mcp.client.auth.utils import issuers_match

from refresher.common import clocks
from refresher.common.errors import ImportRefused, LoginRefused, ServerAway
from refresher.grants.tokens import MAX_LIFETIME
from refresher.login.discovery import Server
from refresher.login.flow import find_server
from refresher.login.http_client import Connections
from refresher.login.options import LoginOptions
from refresher.migration.kept_login import KeptLogin, without_query

__all__ = ["import_request_of"]

_SECRET_METHODS = ("client_secret_basic", "client_secret_post")


def import_request_of(login: KeptLogin, url: str, ca_file: str | None) -> bytes:
    """Return the JSON for ``import_request.parse`` of a login at the MCP server ``url``.

    Raises ``ImportRefused`` if the server cannot be asked safely, or is not that of the login, and ``ServerAway``.
    """
    connections = Connections(ca_file)
    try:
        server = connections.run(_issuing_server, login, url, connections)
    except LoginRefused as error:
        raise ImportRefused(
            f"{_reason(error, url)}; nothing was changed. Make a login of its own: 'refresher login'"
        ) from None
    except ServerAway as error:
        raise ServerAway(f"{_reason(error, url)}; nothing was changed. Import again later") from None
    fields: dict[str, Any] = {
        "server_url": url,
        "token_endpoint": server.token_endpoint,
        "issuer": server.issuer,
        "revocation_endpoint": server.revocation_endpoint,
        "resource": server.resource,
        "client_id": login.client_id,
        "client_secret": _revealed(login.client_secret),
        "token_endpoint_auth_method": _auth_method(login, server),
        "refresh_token": _revealed(login.refresh_token),
        "access_token": _revealed(login.access_token) if _is_plausible(login.expires_at) else None,
        "token_type": login.token_type,
        "id_token": _revealed(login.id_token),
        "expires_at": login.expires_at if login.access_token is not None and _is_plausible(login.expires_at) else None,
        "scope": login.scope,
    }
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def _is_plausible(expires_at: float | None) -> bool:
    """Whether it can be the time of an access token: a program may write 0 for one that has expired."""
    return expires_at is None or abs(expires_at - clocks.now().wall) < MAX_LIFETIME


async def _issuing_server(login: KeptLogin, url: str, connections: Connections) -> Server:
    """Return the authorization server that issued the refresh token."""
    server = await find_server(LoginOptions(url=url), connections)
    if login.issuer is not None and not (server.issuer and issuers_match(server.issuer, login.issuer)):
        if login.server_url is None:
            raise LoginRefused(
                f"{login.file} holds a login of {login.issuer}, and {url} names another authorization server: is it "
                "the right --server?"
            )
        # The MCP server names another one today. A refresh token is sent only to the server that issued it.
        issuing = await find_server(LoginOptions(url=url, issuer=login.issuer), connections)
        server = msgspec.structs.replace(issuing, resource=server.resource)
    if login.token_endpoint is not None and login.token_endpoint != server.token_endpoint:
        raise LoginRefused(
            f"{login.file} has the token endpoint {login.token_endpoint}, and the server names {server.token_endpoint}"
        )
    return server


def _auth_method(login: KeptLogin, server: Server) -> str | None:
    """Return how the client authenticates itself: as it was registered, else as the server requires."""
    if login.client_secret is None or login.auth_method is not None:
        return login.auth_method
    supported = server.auth_methods or _SECRET_METHODS
    return next((method for method in _SECRET_METHODS if method in supported), None)


def _reason(error: Exception, url: str) -> str:
    """Return what went wrong, without the query of the address, which can hold a key."""
    return str(error).partition("; nothing was changed")[0].replace(url, without_query(url))


def _revealed(secret: Any) -> str | None:
    return None if secret is None else str(secret.reveal())
