"""An MCP server (of the SDK) whose faults a test controls.

    python -m tests.servers.mcp_stage PORT '{"json_response": false}' '{"tokens": []}'

Listens on 127.0.0.1 (port 0: any), prints one line of JSON when it is ready, and exits when its stdin closes.
The last argument has the first settings, and ``POST /test/play`` changes them:

- ``tokens``: the tokens that it accepts; ``scopes``: what they permit (``use`` is required)
- ``status``: the status of every response
- ``hang``: never respond
- ``forgets``: answer 404 to each request of a session; ``forget``: forget the present sessions once
- ``refuse``: for a word in the body of a request, the status of the response; ``challenge``: its challenge
- ``answer``: for a word in the body of a request, the JSON of the response; ``null``: an empty event stream
- ``redirect``: redirect each request once, within the origin
- ``says``: the response to each call of a tool
- ``breaks``: cut the connection after the first byte of the response to a call
- ``once``: for a word in the body of a request, the status of the response to the next one; 0: the connection is cut
- ``cut_streams``: cut the connection of each stream of notifications once
- ``stream_status``: the status of every response to GET; 0: its own
- ``writes``: tools that lose their read-only hint
- ``cut``: the share of tool calls whose connection is cut, half of them before the call is executed

``GET /test/log`` returns the number of responses by status, how often each call was executed, the number of requests by
method, and of streams of notifications that are open.
"""

import json
import random
import socket
import sys
from collections import Counter
from typing import Annotated, Any

import anyio
from mcp import MCPError
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.request_state import RequestStateSecurity
from mcp_types import (
    EmptyResult,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    ToolAnnotations,
    UnsubscribeRequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import AnyHttpUrl, BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.servers.serving import serve


class Said(BaseModel):
    """The answer to a question of the server."""

    said: str


class Stage:
    """The settings, and the counts."""

    def __init__(self, app: ASGIApp, mcp: MCPServer, executed: Counter[str]) -> None:
        self._app = app
        self._mcp = mcp
        self._executed = executed
        self._answers: Counter[int] = Counter()
        self._requests: Counter[str] = Counter()
        self._random = random.Random(7)
        self.tokens: set[str] = set()
        self.status: int | None = None
        self.hang = False
        self.forgets = False
        self.cut = 0.0
        self.refuse: dict[str, int] = {}
        self.once: dict[str, int] = {}
        self.challenge = ""
        self.answer: dict[str, Any] = {}
        self.scopes = ["use"]
        self.redirect = False
        self.stream_status = 0
        self._streams: set[Any] = set()
        self.breaks = False
        self.says: dict[str, Any] | None = None

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the data of a token; ``None`` if it is not accepted."""
        known = token in self.tokens
        return AccessToken(token=token, client_id="agent", scopes=self.scopes, subject="user") if known else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/test/play":
            self.play(json.loads(await _body(receive)))
            await _answer(send, 200, {})
        elif scope["path"] == "/test/log":
            log: dict[str, Any] = {"answers": self._answers, "executed": self._executed, "requests": self._requests}
            log["listening"] = len(self._streams)
            await _answer(send, 200, log)
        else:
            await self._perform(scope, receive, send)

    def play(self, wishes: dict[str, Any]) -> None:
        """Change settings."""
        self.tokens = set(wishes.get("tokens", self.tokens))
        self.status = wishes.get("status", self.status)
        self.hang = wishes.get("hang", self.hang)
        self.cut = wishes.get("cut", self.cut)
        self.forgets = wishes.get("forgets", self.forgets)
        self.refuse = wishes.get("refuse", self.refuse)
        self.once = wishes.get("once", self.once)
        self.challenge = wishes.get("challenge", self.challenge)
        self.answer = wishes.get("answer", self.answer)
        self.scopes = wishes.get("scopes", self.scopes)
        self.breaks = wishes.get("breaks", self.breaks)
        self.says = wishes.get("says", self.says)
        self.redirect = wishes.get("redirect", self.redirect)
        self.stream_status = wishes.get("stream_status", self.stream_status)
        if wishes.get("cut_streams"):
            for transport in list(self._streams):
                transport.abort()
        for name in wishes.get("writes", ()):
            self._mcp._tool_manager._tools[name].annotations = None
        if wishes.get("forget"):
            self._mcp.session_manager._server_instances.clear()

    async def _perform(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests[scope["method"]] += 1
        if self.hang:
            await anyio.sleep_forever()
        if self.status is not None:
            self._answers[self.status] += 1
            return await _answer(send, self.status, {"played": True})
        if self.forgets and any(name == b"mcp-session-id" for name, _ in scope["headers"]):
            self._answers[404] += 1
            return await _answer(send, 404, {"played": True})
        if self.redirect and not scope["query_string"]:
            return await _answer(send, 307, {}, (b"location", b"/mcp?again"))
        body = await _body(receive) if scope["method"] == "POST" else b""
        if self.says is not None and b'"tools/call"' in body:
            return await _answer(send, 200, self.says)
        for word in [word for word in self.once if word.encode() in body]:
            self._answers[status := self.once.pop(word)] += 1
            if status:
                return await _answer(send, status, {})
            receive.__self__.transport.abort()  # type: ignore[attr-defined]
            return None
        for word, status in self.refuse.items():
            if word.encode() in body:
                self._answers[status] += 1
                challenge = (b"www-authenticate", self.challenge.encode())
                more = [challenge] if self.challenge else []
                return await _answer(send, status, {"error": "invalid or expired session"}, *more)
        for word, value in self.answer.items():
            if word.encode() in body:
                if value is not None:
                    return await _answer(send, 200, value)
                headers = [(b"content-type", b"text/event-stream")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                return await send({"type": "http.response.body", "body": b""})
        cut = self._random.random() < self.cut and b'"tools/call"' in body
        if cut and self._random.random() < 0.5:
            receive.__self__.transport.abort()  # type: ignore[attr-defined]
            return None

        said = body

        async def again() -> Message:
            nonlocal body
            if body:
                whole, body = body, b""
                return {"type": "http.request", "body": whole, "more_body": False}
            return await receive()

        async def watched(message: Message) -> None:
            if cut:
                return
            if self.breaks and message["type"] == "http.response.body" and b'"tools/call"' in said:
                await send({**message, "body": message["body"][:1], "more_body": True})
                receive.__self__.transport.abort()  # type: ignore[attr-defined]
                return
            if message["type"] == "http.response.start":
                self._answers[message["status"]] += 1
            await send(message)

        if scope["method"] == "GET" or b'"subscriptions/listen"' in body:
            if self.stream_status:
                self._answers[self.stream_status] += 1
                return await _answer(send, self.stream_status, {"played": True})
            transport = receive.__self__.transport  # type: ignore[attr-defined]
            self._streams.add(transport)
            try:
                return await self._app(scope, again if body else receive, watched)
            finally:
                self._streams.discard(transport)
        await self._app(scope, again if body else receive, watched)
        if cut:
            receive.__self__.transport.abort()  # type: ignore[attr-defined]
        return None


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Send, status: int, value: Any, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def main(port: int, options: dict[str, Any], wishes: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        executed: Counter[str] = Counter()

        class Late:
            async def verify_token(self, token: str) -> AccessToken | None:
                return await stage.verify_token(token)

        mcp = MCPServer(
            "stage",
            token_verifier=Late(),
            auth=AuthSettings(
                issuer_url=AnyHttpUrl("https://as.example"),
                resource_server_url=AnyHttpUrl(url),
                required_scopes=["use"],
            ),
            request_state_security=RequestStateSecurity(keys=["0" * 64]),  # a restart does not end a call
        )

        @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
        def add(a: int, b: int) -> int:
            executed["add"] += 1
            return a + b

        @mcp.tool()
        async def write(what: str) -> str:
            executed[what] += 1
            return f"wrote {what}"

        @mcp.tool()
        async def slow(seconds: float) -> str:
            executed["slow"] += 1
            await anyio.sleep(seconds)
            return "done"

        @mcp.tool()
        async def stale() -> str:
            executed["stale"] += 1
            return "Error: invalid token" if stage.status is None and not stage.tokens & {"fresh"} else "fine"

        @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
        async def notify(context: Context) -> str:
            if context.session.protocol_version in MODERN_PROTOCOL_VERSIONS:
                await context.notify_tools_changed()
            else:
                await context.session.send_tool_list_changed()
            return "sent"

        def question() -> Elicit[Said]:
            return Elicit("what?", Said)

        @mcp.tool()
        async def asks(answer: Annotated[Said, Resolve(question)]) -> str:
            executed["asks"] += 1
            return answer.said

        @mcp.tool()
        async def asks_aside(context: Context) -> str:
            """Ask on the stream of the session, which belongs to no call."""
            answer = await context.session.elicit_form("what?", Said.model_json_schema())
            executed["asks"] += 1
            return str((answer.content or {})["said"])

        @mcp.tool()
        async def samples(context: Context) -> str:
            """Ask the model of the client, after two steps of progress and a log line."""
            for step in (1, 2):
                await context.report_progress(step, 2)
            await context.log("info", "asking")
            content = SamplingMessage(role="user", content=TextContent(type="text", text="what?"))
            answer = await context.session.create_message([content], max_tokens=10)
            assert isinstance(answer.content, TextContent)
            return answer.content.text

        @mcp.tool()
        async def deny(how: str) -> str:
            executed[f"deny {how}"] += 1
            if "fresh" in stage.tokens:
                return "fine"
            raise MCPError(-32001, "invalid token") if how == "error" else ToolError("invalid token")

        async def subscribe(_: Any, params: SubscribeRequestParams) -> EmptyResult:
            executed[f"subscribe {params.uri}"] += 1
            if "gone" in str(params.uri) and "fresh" in stage.tokens:
                raise MCPError(-32002, "no such resource")
            return EmptyResult()

        async def unsubscribe(_: Any, params: UnsubscribeRequestParams) -> EmptyResult:
            return EmptyResult()

        async def set_level(_: Any, params: SetLevelRequestParams) -> EmptyResult:
            executed[f"level {params.level}"] += 1
            return EmptyResult()

        handlers = mcp._lowlevel_server
        handlers.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
        handlers.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)
        handlers.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)

        @mcp.resource("stage://greeting")
        def greeting() -> str:
            return "hello"

        @mcp.prompt()
        def ask(about: str) -> str:
            return f"What of {about}?"

        stage = Stage(mcp.streamable_http_app(**options), mcp, executed)
        stage.play(wishes)
        await serve(stage, listener, url)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
