"""The MCP server of FastMCP, as a counterpart: see ``counterpart.py``. It runs in an environment of its own.

    .venv/fastmcp/bin/python -m tests.servers.counterpart_fastmcp PORT DIRECTORY '{"json_response": false}'

It stores the notifications that a client has missed, and sends them again after a ``Last-Event-ID``.
"""

import json
import socket
import sys
from dataclasses import dataclass
from typing import Any

import anyio
from fastmcp import Context, FastMCP
from fastmcp.server.auth import AccessToken, TokenVerifier
from fastmcp.server.event_store import EventStore
from mcp_types import EmptyResult, SubscribeRequestParams, ToolAnnotations, UnsubscribeRequestParams

from tests.servers.counterpart import NEWS, Control
from tests.servers.serving import serve


@dataclass
class _Said:
    said: str


async def _empty(*_: Any) -> EmptyResult:
    return EmptyResult()


async def main(port: int, directory: str, options: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    control = Control(directory)

    class Verifier(TokenVerifier):  # type: ignore[misc]
        async def verify_token(self, token: str) -> AccessToken | None:
            accepted = control.accepted(token)
            return accepted and AccessToken(**accepted.model_dump(exclude_none=True))

    mcp = FastMCP("fastmcp", auth=Verifier(required_scopes=["use"]))
    reads = ToolAnnotations(read_only_hint=True)

    def add(a: int, b: int) -> int:
        control.executed("add")
        return a + b

    def version() -> int:
        return control.version()

    def write(what: str) -> str:
        control.executed(what)
        return f"wrote {what}"

    async def slow(seconds: float) -> str:
        control.executed("slow")
        await anyio.sleep(seconds)
        return "done"

    async def ask(context: Context) -> str:
        answer = await context.elicit("what?", response_type=_Said)
        control.executed(f"heard {answer.data.said}")
        return str(answer.data.said)

    def news() -> str:
        return str(control.version())

    mcp.tool(add, annotations=reads)
    mcp.tool(version, annotations=reads)
    mcp.tool(write)
    mcp.tool(slow)
    mcp.tool(ask)
    mcp.tool(control.notify, name="notify")
    mcp.resource(NEWS)(news)
    mcp._mcp_server.middleware.append(control.meet)
    mcp._mcp_server.add_request_handler("resources/subscribe", SubscribeRequestParams, _empty)
    mcp._mcp_server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, _empty)
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        app = mcp.http_app(path="/mcp", event_store=EventStore(), **options)
        await serve(control.with_test_route(app, control.notify), listener, url)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
