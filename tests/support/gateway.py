"""A gateway in the event loop of a test, and an agent that reads raw bytes from it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from refresher.gateway.access import Access
from refresher.gateway.forwarding import Forwarder
from refresher.gateway.keys import Keys, make, render
from refresher.gateway.server import server_for
from shim import FileTokenSource
from tests.support.published import Published

__all__ = ["Agent", "Answer", "gateway", "write_key"]


class Answer(NamedTuple):
    """What an agent has read up to the end of the connection."""

    status: int
    head: str
    body: bytes

    @property
    def names(self) -> set[str]:
        """The names of the headers, in lower case."""
        return {line.partition(":")[0].lower() for line in self.head.splitlines()[1:]}


class Agent(NamedTuple):
    """Sends requests to a gateway."""

    port: int
    key: str
    forwarder: Forwarder

    async def open(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and send bytes on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        return reader, writer

    def head(self, target: str, *headers: str, method: str = "GET") -> bytes:
        """Return a request without a body."""
        lines = (f"{method} {target} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.key}", *headers)
        return "\r\n".join((*lines, "", "")).encode()

    async def ask(self, target: str, *headers: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send a request, and return its answer when the connection has ended."""
        length = (f"Content-Length: {len(body)}",) if body or method == "POST" else ()
        return await self.send(self.head(target, *headers, *length, "Connection: close", method=method) + body)

    async def send(self, request: bytes) -> Answer:
        """Send bytes, and return the answer when the connection has ended."""
        reader, writer = await self.open(request)
        async with asyncio.timeout(90):
            data = await reader.read()
        writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        return Answer(int(head.split()[1]) if head else 0, head.decode("latin-1"), body)


def write_key(path: Path, *names: str) -> str:
    """Write a file with one key, and return the key."""
    key, made = make("agent", names)
    path.touch(mode=0o600)
    path.write_bytes(render([made]))
    return key


@asynccontextmanager
async def gateway(published: Published, program: str = "refresher", most: int = 1000) -> AsyncIterator[Agent]:
    """Serve the tokens of ``published`` to an agent with a key, on at most so many connections.

    ``program``: begins the commands for a person.
    """
    keys = published.tokens.parent / "keys.json"
    key = write_key(keys)

    def source(name: str) -> FileTokenSource:
        return FileTokenSource(name, tokens_dir=published.tokens, demands_dir=published.demands)

    access = Access(Keys(str(keys)))
    tls = ssl.create_default_context()
    forwarder = Forwarder(access, source, tls=tls, proxy=lambda *_: None, program=program)
    server = server_for(forwarder, most)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Agent(listening.sockets[0].getsockname()[1], key, forwarder)
    finally:
        listening.close()
        server.pre_shutdown()
        await server.shutdown(0.1)
        await forwarder.close()
