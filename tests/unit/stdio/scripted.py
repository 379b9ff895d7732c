"""A bridge in this process, between lists of messages and a scripted server."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2

from refresher.stdio.bridge import Bridge
from refresher.stdio.upstream import Upstream
from shim.httpx2 import BearerAuth
from tests.support.published import Published

__all__ = ["INITIALIZE", "READY", "Client", "Server", "bridged", "call", "stream"]

URL: Final = "https://mcp.example/mcp"
READY: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}
INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "x": 1}},
}

Act = Callable[[dict[str, Any]], httpx2.Response | Awaitable[httpx2.Response]]


def call(request_id: object, name: str = "write", method: str = "tools/call", **params: Any) -> dict[str, Any]:
    """A request of the client."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {"name": name, **params}}


def stream(*messages: Any, event_id: str = "", rest: Callable[[], Awaitable[None]] | None = None) -> httpx2.Response:
    """A stream of events, which ends after them, and after ``rest``."""

    async def events() -> AsyncIterator[bytes]:
        for message in messages:
            yield (f"id: {event_id}\n" if event_id else "").encode() + f"data: {json.dumps(message)}\n\n".encode()
        if rest is not None:
            await rest()

    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events())


class Server:
    """Answers each method by ``acts``, else with an empty result; forgets its sessions when ``restart`` is called."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}
        self.version = "2025-11-25"
        self.sessions = 0
        self.known: set[str] = set()
        self.received: list[tuple[str, dict[str, Any], httpx2.Headers]] = []
        self.token = "access-token-1"
        self.listener: Callable[[], httpx2.Response] | None = None

    def restart(self) -> None:
        """Forget the sessions."""
        self.known.clear()

    def methods(self) -> list[str]:
        """The methods of the messages that have come."""
        return [method for method, _, _ in self.received]

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request."""
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return httpx2.Response(401, headers={"www-authenticate": 'Bearer error="invalid_token"'})
        session = request.headers.get("mcp-session-id")
        if session is not None and session not in self.known:
            return httpx2.Response(404)
        if request.method == "GET":
            self.received.append(("GET", {}, request.headers))
            if "last-event-id" in request.headers and "GET" in self.acts:
                return self.acts["GET"]({})  # type: ignore[return-value]
            return httpx2.Response(405) if self.listener is None else self.listener()
        if request.method == "DELETE":
            self.received.append(("DELETE", {}, request.headers))
            return httpx2.Response(200)
        message = json.loads(request.content)
        method = message.get("method", "answer")
        self.received.append((method, message, request.headers))
        if (act := self.acts.get(method)) is not None:
            answer = act(message)
            return answer if isinstance(answer, httpx2.Response) else await answer
        if message.get("id") is None or method == "answer":
            return httpx2.Response(202)
        result: dict[str, Any] = {"echo": message.get("params")}
        headers = {}
        if method == "initialize":
            self.sessions += 1
            headers = {"mcp-session-id": f"session-{self.sessions}"}
            self.known.add(f"session-{self.sessions}")
            result = {"protocolVersion": self.version, "capabilities": {"tools": {"listChanged": True}}, "extra": 1}
        return httpx2.Response(200, headers=headers, json={"jsonrpc": "2.0", "id": message["id"], "result": result})


class Client:
    """What the client has received, and how it sends."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.bridge: Bridge

    async def send(self, line: bytes) -> None:
        """Take a line of the bridge: the bridge calls it."""
        self.lines.append(json.loads(line))

    async def says(self, *messages: Any) -> None:
        """Send messages to the bridge."""
        for message in messages:
            await self.bridge.take(message if isinstance(message, bytes) else json.dumps(message).encode())

    async def hears(self, condition: Callable[[Any], bool]) -> Any:
        """Wait for a message that meets ``condition``, and return it."""
        with anyio.fail_after(60):
            while not (found := [line for line in self.lines if condition(line)]):
                await anyio.sleep(0.001)
        return found[0]

    async def answer(self, request_id: object) -> Any:
        """Wait for the answer to a request."""
        return await self.hears(
            lambda line: isinstance(line, dict) and "method" not in line and line["id"] == request_id
        )

    async def asks(self, message: Any) -> Any:
        """Send a request, and return its answer."""
        await self.says(message)
        return await self.answer(message["id"])

    async def begins(self) -> None:
        """Begin a session."""
        await self.asks(INITIALIZE)
        await self.says(READY)


@asynccontextmanager
async def bridged(
    place: Path, server: Server, *, patience: float = 60, token: bool = True
) -> AsyncIterator[tuple[Client, Published]]:
    """Run a bridge between a client and ``server``."""
    published = Published(place)
    if token:
        published.put(1, server_url=URL)
    source, client = published.source(), Client()
    upstream = Upstream(source, None, None, patience, "refresher --state-dir '/a b'")
    upstream.http = httpx2.AsyncClient(auth=BearerAuth(source, wait=0), transport=httpx2.MockTransport(server))
    async with anyio.create_task_group() as tasks:
        client.bridge = Bridge(upstream, client.send, patience, tasks)
        yield client, published
        tasks.cancel_scope.cancel()
