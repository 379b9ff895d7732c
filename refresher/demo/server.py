"""The authorization server and MCP server of the demo: ``python -m refresher.demo.server GRANT SECONDS``.

Writes a first grant to the file GRANT, as a login returns it. Each line on stdout is one event as JSON, without a
secret. Ends with its stdin, so that its parent cannot leave it behind.
"""

# The SDK's signatures hold more than a server with one client needs.
# ruff: noqa: ARG002

import argparse
import json
import logging
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Final

import anyio
import uvicorn
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    RegistrationError,
    TokenError,
)
from mcp.server.auth.settings import AuthSettings, RevocationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Strict", "main"]

_MCP_PATH: Final = "/mcp"
_SUBJECT: Final = "a person"


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m refresher.demo.server")
    parser.add_argument("grant", type=Path, help="where the first grant is written")
    parser.add_argument("life", type=int, help="seconds that an access token lives")
    given = parser.parse_args()
    logging.disable()
    anyio.run(_serve, given.grant, given.life)


class Strict(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """One client and one login. A refresh token that is sent twice revokes everything (RFC 9700 section 4.14)."""

    def __init__(self, resource: str, life: int) -> None:
        self._resource = resource
        self._life = life
        self._client = OAuthClientInformationFull(
            client_id="refresher-demo",
            client_secret=secrets.token_urlsafe(24),
            token_endpoint_auth_method="client_secret_post",  # noqa: S106  a method, no secret
            redirect_uris=None,
        )
        self._refresh: dict[str, RefreshToken] = {}
        self._spent: set[str] = set()
        # With the monotonic second at which each expires: the SDK checks whole seconds only.
        self._access: dict[str, tuple[AccessToken, float]] = {}

    def log_in(self) -> dict[str, str | None]:
        """Return the fields of a login for ``refresher import``, without the addresses."""
        return {
            "client_id": self._client.client_id,
            "client_secret": self._client.client_secret,
            "token_endpoint_auth_method": self._client.token_endpoint_auth_method,
            "refresh_token": self._new_refresh_token(),
        }

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        """Return the one client."""
        return self._client if client_id == self._client.client_id else None

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        """Return a refresh token; one that is spent revokes the login, because it may be stolen."""
        if refresh_token in self._spent:
            self._refresh.clear()
            self._access.clear()
            _print_event("reused")
        return self._refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        """Spend a refresh token for the next pair."""
        del self._refresh[refresh_token.token]
        self._spent.add(refresh_token.token)
        access = AccessToken(
            token=secrets.token_urlsafe(24),
            client_id=refresh_token.client_id,
            scopes=scopes,
            expires_at=int(time.time()) + self._life + 1,
            resource=self._resource,
            subject=_SUBJECT,
        )
        self._access[access.token] = (access, time.monotonic() + self._life)
        _print_event("rotated")
        return OAuthToken(access_token=access.token, expires_in=self._life, refresh_token=self._new_refresh_token())

    async def load_access_token(self, token: str) -> AccessToken | None:
        """Return an access token that has not expired."""
        access, ends = self._access.get(token, (None, 0.0))
        return access if time.monotonic() < ends else None

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        """Revoke this token alone (RFC 7009)."""
        self._access.pop(token.token, None)
        self._refresh.pop(token.token, None)
        _print_event("revoked")

    def _new_refresh_token(self) -> str:
        token = RefreshToken(
            token=secrets.token_urlsafe(24),
            client_id=self._client.client_id or "",
            scopes=[],
            resource=self._resource,
            subject=_SUBJECT,
        )
        self._refresh[token.token] = token
        return token.token

    # No browser logs in here: the grant exists from the start.

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        """Refuse."""
        raise RegistrationError("invalid_client_metadata")

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        """Refuse."""
        raise AuthorizeError("access_denied")

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        """Return no code."""
        return None

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        """Refuse."""
        raise TokenError("invalid_grant")


async def _serve(grant: Path, life: int) -> None:
    # Bound here and not by uvicorn: another process could take the port between choosing and binding it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        mcp_url = issuer + _MCP_PATH
        provider = Strict(mcp_url, life)
        config = uvicorn.Config(_app(provider, issuer), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        _write_private(
            grant,
            {
                "token_endpoint": f"{issuer}/token",
                "server_url": mcp_url,
                "resource": mcp_url,
                "issuer": issuer,
                **provider.log_in(),
            },
        )
        _print_event("ready", issuer=issuer, mcp_url=mcp_url, revocation_endpoint=f"{issuer}/revoke")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_with_stdin, server)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


def _app(provider: Strict, issuer: str) -> ASGIApp:
    mcp = MCPServer(
        "refresher-demo",
        auth_server_provider=provider,
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(issuer),
            resource_server_url=AnyHttpUrl(issuer + _MCP_PATH),
            validate_token_resource=True,
            revocation_options=RevocationOptions(enabled=True),
        ),
    )

    @mcp.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return _ReportsRefusals(mcp.streamable_http_app())


class _ReportsRefusals:
    """Prints an event for each 401 of the MCP server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401 and scope["path"] == _MCP_PATH:
                _print_event("refused")
            await send(message)

        await self._app(scope, receive, watched if scope["type"] == "http" else send)


async def _end_with_stdin(server: uvicorn.Server) -> None:
    open_still = True
    while open_still:
        await anyio.wait_readable(0)
        open_still = os.read(0, 1024) != b""
    server.should_exit = True


def _write_private(path: Path, fields: dict[str, str | None]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(fields, file)


def _print_event(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)  # noqa: T201  this is what stdout is for here


if __name__ == "__main__":
    main()
