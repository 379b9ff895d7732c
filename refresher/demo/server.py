"""The authorization server and MCP server of the demo: ``python -m refresher.demo.server GRANT LIFETIME``.

Writes a first grant to the file GRANT, as a login returns it. Each line on stdout is one event as JSON, without a
secret. Ends at SIGTERM.
"""

# The SDK's methods have more parameters than a server with one client needs.
# ruff: noqa: ARG002

import json
import logging
import secrets
import socket
import sys
import time
from pathlib import Path

import anyio
import uvicorn
from mcp.server.auth.provider import AccessToken, AuthorizationCode, OAuthAuthorizationServerProvider, RefreshToken
from mcp.server.auth.settings import AuthSettings, RevocationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl

__all__ = ["StrictProvider", "main"]


def main() -> None:
    """Serve until SIGTERM."""
    _, grant, lifetime = sys.argv
    logging.disable()
    anyio.run(_serve, Path(grant), int(lifetime))


class StrictProvider(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """One client and one login. A refresh token that is sent twice revokes everything (RFC 9700 section 4.14).

    There is no browser login here, so the SDK's methods for that are not implemented.
    """

    def __init__(self, resource: str, lifetime: int) -> None:
        self._resource = resource
        self._lifetime = lifetime
        self._client = OAuthClientInformationFull(
            client_id="refresher-demo",
            client_secret=secrets.token_urlsafe(24),
            token_endpoint_auth_method="client_secret_post",  # noqa: S106  a method, no secret
            redirect_uris=None,
        )
        self._refresh: dict[str, RefreshToken] = {}
        self._spent: set[str] = set()
        # With the monotonic second at which each expires: the SDK's own check knows whole seconds only.
        self._access: dict[str, tuple[AccessToken, float]] = {}

    def log_in(self) -> dict[str, str | None]:
        """Return the fields of a login for ``refresher import``, without the addresses."""
        client = self._client.model_dump(include={"client_id", "client_secret", "token_endpoint_auth_method"})
        return client | {"refresh_token": self._new_refresh_token()}

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
            resource=self._resource,
        )
        self._access[access.token] = (access, time.monotonic() + self._lifetime)
        _print_event("rotated")
        return OAuthToken(access_token=access.token, expires_in=self._lifetime, refresh_token=self._new_refresh_token())

    async def load_access_token(self, token: str) -> AccessToken | None:
        """Return an access token that has not expired; the MCP server answers 401 to another one."""
        access, ends = self._access.get(token, (None, 0.0))
        if time.monotonic() < ends:
            return access
        _print_event("refused")
        return None

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
        )
        self._refresh[token.token] = token
        return token.token


async def _serve(grant: Path, lifetime: int) -> None:
    # Bound here and not by uvicorn: another process could take the port after it was chosen.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        mcp_url = f"{issuer}/mcp"
        provider = StrictProvider(mcp_url, lifetime)  # type: ignore[abstract]
        mcp = MCPServer(
            "refresher-demo",
            auth_server_provider=provider,
            auth=AuthSettings(
                issuer_url=AnyHttpUrl(issuer),
                resource_server_url=AnyHttpUrl(mcp_url),
                validate_token_resource=True,
                revocation_options=RevocationOptions(enabled=True),
            ),
        )

        @mcp.tool()
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        endpoints = {"token_endpoint": f"{issuer}/token", "revocation_endpoint": f"{issuer}/revoke"}
        addresses = {"issuer": issuer, "server_url": mcp_url, "resource": mcp_url}
        # The parent has made the directory private, and waits until it contains the whole file.
        draft = grant.with_suffix(".new")
        draft.write_text(json.dumps(endpoints | addresses | provider.log_in()))
        draft.rename(grant)
        app = mcp.streamable_http_app()
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve(sockets=[listener])


def _print_event(event: str) -> None:
    print(json.dumps({"event": event, "at": time.time()}), flush=True)  # noqa: T201  the demo reads it from stdout


if __name__ == "__main__":
    main()
