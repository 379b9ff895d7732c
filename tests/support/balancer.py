"""A load balancer between clients and one HTTP server, in the event loop of its test: it sees each request, and cuts."""

import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

__all__ = ["Balancer", "Decision", "Request"]

Decision = Literal["pass", "busy", "drop", "lose", "break"]
"""
- ``pass``: forward the request and its response.
- ``busy``: answer 503; the server never receives the request.
- ``drop``: cut the connection; the server never receives the request.
- ``lose``: forward the request, and cut the connection when the response starts.
- ``break``: forward the request and the first bytes of its body, and cut the connection.
"""

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\nbusy"


@dataclass(frozen=True)
class Request:
    """A request of a client."""

    method: str
    head: bytes
    message: dict[str, Any]
    """The JSON-RPC message; empty if there is none."""

    @property
    def name(self) -> str:
        """The HTTP method, the JSON-RPC method (``answer`` for a response to the server), and the tool of a call."""
        names = [self.method]
        if self.message:
            names.append(self.message.get("method", "answer"))
        if "tools/call" in names:
            names.append(self.message["params"]["name"])
        return " ".join(names)

    @property
    def is_stream(self) -> bool:
        """Whether its response is a stream of notifications."""
        return self.name in ("GET", "POST subscriptions/listen")


class _Link:
    """A connection of a client, with its connection to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.request: Request | None = None
        self.decision: Decision = "pass"

    def cut(self) -> None:
        for side in (self.client, self.server):
            if side is not None:
                side.transport.abort()


class Balancer:
    """Forwards to ``port`` on 127.0.0.1. ``decide`` may cause a fault for each request."""

    def __init__(self, port: int) -> None:
        self.decide: Callable[[Request], Decision] = lambda _: "pass"
        self.requests: Counter[str] = Counter()
        """The number of requests by name."""
        self.streams = 0
        """The number of streams whose response has started."""
        self._server_port = port
        self._port = 0
        self._listener: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def origin(self) -> str:
        """The origin of the server for its clients."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The URL of the server for its clients."""
        return f"{self.origin}/mcp"

    async def up(self) -> None:
        """Listen; after ``down``, on the same port."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listener.setblocking(False)
            self._port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def down(self) -> None:
        """Refuse connections, as if nothing listens, and cut those that are open."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.cut(lambda _: True)

    def cut(self, which: Callable[[Request], bool]) -> int:
        """Cut the connections whose latest request is one of ``which``; return their number."""
        chosen = [link for link in self._links if link.request is not None and which(link.request)]
        for link in chosen:
            link.cut()
        return len(chosen)

    def cut_streams(self) -> int:
        """Cut the streams of notifications; return their number."""
        return self.cut(lambda request: request.is_stream)

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()
        while self._tasks:
            for link in self._links:
                link.cut()
            await asyncio.sleep(0.01)

    # Not asyncio.start_server, which loses a connection that it accepts while it is closed (Python 3.11).
    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the client has gone
        task = asyncio.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
        link = _Link(writer)
        self._links.add(link)
        responses: asyncio.Task[None] | None = None
        try:
            while (data := await _read_request(reader)) is not None:
                request = link.request = _parsed(*data)
                self.requests[request.name] += 1
                link.decision = self.decide(request)
                if link.decision == "busy":
                    writer.write(_BUSY)
                    continue
                if link.decision == "drop":
                    return
                if link.server is None:
                    upstream, link.server = await asyncio.open_connection("127.0.0.1", self._server_port)
                    responses = asyncio.create_task(self._respond(link, upstream))
                link.server.write(b"".join(data))
                await link.server.drain()
        except OSError:
            pass  # one side has closed the connection, or the server is away
        finally:
            link.cut()
            if responses is not None:
                await responses
            self._links.discard(link)

    async def _respond(self, link: _Link, upstream: asyncio.StreamReader) -> None:
        started: Request | None = None
        with contextlib.suppress(OSError):
            while data := await upstream.read(2**16):
                if link.decision == "lose":
                    break
                if started is not link.request and link.request is not None:
                    started = link.request
                    self.streams += started.is_stream and data.startswith(b"HTTP/1.1 200 ")
                link.client.write(data)
                await link.client.drain()
                if link.decision == "break" and b"\r\n\r\n" not in data[-4:]:
                    break
        link.cut()


async def _read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return head, await reader.readexactly(int(length[1]) if length else 0)
    except (asyncio.IncompleteReadError, OSError):
        return None


def _parsed(head: bytes, body: bytes) -> Request:
    return Request(head.split(b" ", 1)[0].decode(), head, json.loads(body) if body else {})
