"""The MCP server of the Python SDK, as a counterpart: see ``counterpart.py``.

    python -m tests.servers.counterpart_python PORT DIRECTORY '{"json_response": false}'

The last argument has the options of the SDK's ``streamable_http_app``.
"""

import json
import socket
import sys
from typing import Annotated, Any

import anyio
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Elicit, MCPServer, RequestStateSecurity, Resolve
from mcp.shared.subscriptions import ResourceUpdated, ToolsListChanged
from mcp_types import EmptyResult, SubscribeRequestParams, ToolAnnotations, UnsubscribeRequestParams
from pydantic import AnyHttpUrl, BaseModel

from tests.servers.counterpart import NEWS, Control
from tests.servers.serving import serve


class _Said(BaseModel):
    said: str


def _question() -> Elicit[_Said]:
    return Elicit("what?", _Said)


async def _empty(*_: Any) -> EmptyResult:
    return EmptyResult()


async def main(port: int, directory: str, options: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    control = Control(directory)

    class Verifier:
        async def verify_token(self, token: str) -> AccessToken | None:
            return control.accepted(token)

    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        auth = AuthSettings(
            issuer_url=AnyHttpUrl("https://as.example"),
            resource_server_url=AnyHttpUrl(url),
            validate_token_resource=False,
            required_scopes=["use"],
        )
        # With this key, a process goes on with the questions of the one before.
        security = RequestStateSecurity(keys=[b"the key of every counterpart in a test"])
        mcp = MCPServer(
            "python", log_level="CRITICAL", token_verifier=Verifier(), auth=auth, request_state_security=security
        )
        reads = ToolAnnotations(read_only_hint=True)

        async def notify() -> None:
            await control.notify()
            for event in (ToolsListChanged(), ResourceUpdated(uri=NEWS)):
                await mcp._subscriptions.publish(event)

        @mcp.tool(annotations=reads)
        def add(a: int, b: int) -> int:
            control.executed("add")
            return a + b

        @mcp.tool(annotations=reads)
        def version() -> int:
            return control.version()

        @mcp.tool()
        def write(what: str) -> str:
            control.executed(what)
            return f"wrote {what}"

        @mcp.tool()
        async def slow(seconds: float) -> str:
            control.executed("slow")
            await anyio.sleep(seconds)
            return "done"

        @mcp.tool()
        def ask(answer: Annotated[_Said, Resolve(_question)]) -> str:
            control.executed(f"heard {answer.said}")
            return answer.said

        mcp.tool(name="notify")(notify)

        @mcp.resource(NEWS)
        def news() -> str:
            return str(control.version())

        mcp._lowlevel_server.middleware.append(control.meet)
        mcp._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, _empty)
        mcp._lowlevel_server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, _empty)
        await serve(control.with_test_route(mcp.streamable_http_app(**options), notify), listener, url)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
