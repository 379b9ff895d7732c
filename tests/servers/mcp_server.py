"""An MCP server (of the SDK) that verifies every token by introspection (RFC 7662).

    MCP_INSPECTOR='["client", "secret"]' python -m tests.servers.mcp_server ISSUER INTROSPECTION_ENDPOINT [SCOPE...]

Listens on a free port of 127.0.0.1, prints one line of JSON when it is ready, and exits when its stdin closes.
``GET /test/log`` returns the number of sessions and the number of responses by status.
"""

import json
import os
import socket
import sys
from collections import Counter
from urllib.parse import quote_plus

import anyio
import httpx
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.servers.serving import serve

# Clients compare issuers as strings, and by default pydantic adds a slash to an issuer without a path.
_VERBATIM = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))


class Introspection:
    """Verifies tokens at the authorization server."""

    def __init__(self, endpoint: str) -> None:
        client, secret = json.loads(os.environ["MCP_INSPECTOR"])
        self._endpoint = endpoint
        self._http = httpx.AsyncClient(auth=(quote_plus(client), quote_plus(secret)), trust_env=False, timeout=60)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the data of a token; ``None`` if it is not active."""
        said = (await self._http.post(self._endpoint, data={"token": token})).raise_for_status().json()
        if not said["active"]:
            return None
        return AccessToken(
            token=token,
            client_id=said["client_id"],
            scopes=said.get("scope", "").split(),
            expires_at=said["exp"],
            resource=said.get("aud"),
            subject=said["sub"],
        )


class Log:
    """Counts the responses by status, and the sessions in requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answers: Counter[int] = Counter()
        self._sessions: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/test/log":
            body = json.dumps({"answers": self._answers, "sessions": len(self._sessions)}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers[message["status"]] += 1
            await send(message)

        if scope["type"] == "http":
            self._sessions |= {value for name, value in scope["headers"] if name == b"mcp-session-id"}
        await self._app(scope, receive, watched)


async def main(issuer: str, introspection_endpoint: str, scopes: list[str]) -> None:
    """Serve until stdin ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        mcp = MCPServer(
            "test",
            log_level="WARNING",
            token_verifier=Introspection(introspection_endpoint),
            auth=AuthSettings(
                issuer_url=_VERBATIM.validate_python(issuer),
                resource_server_url=AnyHttpUrl(url),
                validate_token_resource=True,
                required_scopes=scopes or None,
            ),
        )

        @mcp.tool()
        def add(a: int, b: int) -> int:
            return a + b

        @mcp.tool()
        async def slow(seconds: float) -> str:
            await anyio.sleep(seconds)
            return "done"

        await serve(Log(mcp.streamable_http_app()), listener, url)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
