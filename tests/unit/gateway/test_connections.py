"""The connections of the gateway: their number, their limits of time, what is no HTTP/1.1, and the stop."""

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from refresher.gateway import connections, forwarding
from tests.support.gateway import Agent, gateway, write_key
from tests.support.published import Published
from tests.support.raw_server import RawServer

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"


async def answered(agent: Agent, *headers: str) -> Ends:
    """Send a request on a connection of its own, which stays open, and read the answer or its first event."""
    reader, writer = await agent.open(agent.head("/linear/x", *headers))
    assert await reader.readuntil(b"1\n\n\r\n" if headers else b"ok") != b""
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait until the gateway has closed a connection, without an answer."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """A grant without a server."""
    made = Published(tmp_path, "http://127.0.0.1:1")
    made.put()
    return made


def test_connections_without_a_key_give_way_and_streams_never(tmp_path: Path) -> None:
    """If it failed, any program on the machine could keep the agents from their servers, or end their streams."""

    async def work() -> None:
        serving = await asyncio.start_server(serve, "127.0.0.1", 0)
        published = Published(tmp_path, f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}")
        published.put()
        async with serving, gateway(published, most=4) as agent, asyncio.timeout(90):
            events = await answered(agent, "Accept: text/event-stream")
            idle = await answered(agent)
            begun = [b"", b"GET /linear/x HTTP/1.1\r\nX: ", b"POST /linear/x HTTP/1.1\r\nContent-Length: 60000\r\n\r\n"]
            silent = [await agent.open(begun[number % 3]) for number in range(30)]
            assert (await agent.ask("/linear/x")).body == b"ok"
            await silent[0][0].read()
            idle[1].write(agent.head("/linear/x"))
            assert await idle[0].readuntil(b"ok") != b""
            # No more than these: all have sent a request that was allowed, and the idle one is the only one to close.
            more = [await answered(agent, "Accept: text/event-stream") for _ in range(3)]
            assert await ended(idle[0])
            refused = await agent.open(agent.head("/linear/x"))
            assert await ended(refused[0])
            assert not any(reader.at_eof() for reader, _ in (events, *more))
            for _, writer in (events, idle, refused, *silent, *more):
                writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(EVENTS if b"event-stream" in head else OK)
        writer.close()

    asyncio.run(work())


def test_a_head_that_never_ends_ends_the_connection(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a program could hold connections with a byte now and then."""
    monkeypatch.setattr(connections, "_HEAD", 0.1)

    async def work() -> None:
        async with gateway(published) as agent, asyncio.timeout(60):
            reader, writer = await agent.open(b"GET /linear/x HTT")
            assert await ended(reader)
            writer.close()

    asyncio.run(work())


@pytest.mark.parametrize("framing", ["Content-Length: 60000", "Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_ends_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: str) -> None:
    """If it failed, an agent that hangs would hold a connection to the gateway and one to the server."""
    monkeypatch.setattr(forwarding, "_SILENCE", 0.1)

    async def work(origin: str) -> None:
        published = Published(tmp_path, origin)
        published.put()
        async with gateway(published) as agent, asyncio.timeout(60):
            reader, writer = await agent.open(agent.head("/linear", framing, method="POST") + b"1\r\na\r\n")
            found = await reader.readuntil(b"}\n")
            assert found.startswith(b"HTTP/1.1 408 ")
            assert b'"error": "slow_request"' in found
            writer.close()

    def silent(connection: socket.socket, request: bytes) -> None:
        connection.recv(65536)

    with RawServer(silent, marker=b"\r\n\r\n") as server:
        asyncio.run(work(server.token_endpoint.removesuffix("/token")))


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        (b"GET /linear/x HTTP/1.0\r\nHost: localhost\r\n\r\n", 505, "no_http11"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "bad_request"),
        (b"GET /linear/x HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "bad_request"),
        (b"GET /linear/x HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 400, "bad_request"),
        (b"GET /linear/x HTTP/1.1\r\nX: \xe9\r\nConnection: close\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_no_http_1_1_gets_json(
    published: Published, caplog: pytest.LogCaptureFixture, request_: bytes, status: int, error: str
) -> None:
    """If it failed, an agent would take half of an answer for the whole, or not understand what is wrong."""

    async def work() -> None:
        async with gateway(published) as agent, asyncio.timeout(60):
            for _ in range(2):
                found = await agent.send(request_)
                assert (found.status, json.loads(found.body)["error"]) == (status, error)
                assert "Server: refresher" in found.head
                assert "Content-Type: application/json" in found.head

    with caplog.at_level(logging.WARNING, "refresher"):
        asyncio.run(work())
    assert len(caplog.messages) == 1
    assert error in caplog.messages[0]


@pytest.mark.parametrize("head", [b"200 OK\r\nX: a\x01b", b"200 OK\r\nX: caf\xe9", b"200 O\x01K", b"200 caf\xe9"])
@pytest.mark.parametrize("body", [b"Content-Length: 2\r\n\r\nok", b"Content-Length: 9\r\n\r\nok"])
def test_a_header_that_cannot_be_passed_on_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, head: bytes, body: bytes
) -> None:
    """If it failed, an agent would get no answer, or a header that was changed, and nobody would know why."""

    async def work(origin: str) -> None:
        published = Published(tmp_path, origin)
        published.put()
        async with gateway(published) as agent, asyncio.timeout(60):
            found = await agent.ask("/linear/x")
            fields = json.loads(found.body)
            assert (found.status, fields["error"]) == (502, "bad_answer")
            assert origin in fields["message"]

    answer = b"HTTP/1.1 " + head + b"\r\n" + body
    with (
        caplog.at_level(logging.WARNING, "refresher"),
        RawServer(lambda connection, _: connection.sendall(answer), marker=b"\r\n\r\n") as server,
    ):
        asyncio.run(work(server.token_endpoint.removesuffix("/token")))
    assert len(caplog.messages) == 1


HANGS = """
import asyncio, ssl, sys, threading
from pathlib import Path
from aiohttp.resolver import DefaultResolver
from refresher.gateway import server
from shim import FileTokenSource

root, key = Path(sys.argv[1]), sys.argv[2]

async def hang(*_, **__):
    print("looked up", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)

DefaultResolver.resolve = hang
server._GRACE = server._CLEANUP = 0.1
server.log.info = lambda text, *shown: shown and print(shown[0], flush=True)
source = lambda name: FileTokenSource(name, tokens_dir=root / "tokens", demands_dir=root / "demands")
server.serve(server.Plan(("127.0.0.1", 0), str(root / "keys.json"), frozenset(), frozenset(), source,
                         ssl.create_default_context(), lambda *_: None))
"""


def test_the_gateway_ends_although_a_name_server_never_answers(tmp_path: Path) -> None:
    """If it failed, one request that hangs would keep the gateway from its end, and the next from its address."""
    published = Published(tmp_path, "http://nowhere.invalid")
    published.put()
    key = write_key(tmp_path / "keys.json")
    command = [sys.executable, "-c", HANGS, str(tmp_path), key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        bound = threading.Timer(60, process.kill)
        bound.start()
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])

            with socket.create_connection(("127.0.0.1", port)) as agent:
                agent.sendall(f"GET /{key}/linear/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                assert process.stdout.readline() == "looked up\n"
                process.terminate()
                assert process.wait(60) == 0
        finally:
            bound.cancel()
            process.kill()
