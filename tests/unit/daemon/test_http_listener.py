"""The listener of the pages, in one process, with an application of three paths."""

import socket
import threading
from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from refresher.daemon import http_listener
from refresher.daemon.http_listener import Listener
from tests.support.command import wait_until

LONGEST = 60.0
WAITING: list[str] = []
"""The requests that have come and get no answer."""


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path; /stream has an endless answer, /silent none."""
    if scope["path"] == "/stream":
        if scope["state"]["connection"].become_stream():
            await StreamingResponse(iter(lambda: b"x" * 65536, None))(scope, receive, send)
        else:
            await PlainTextResponse("full", 503)(scope, receive, send)
    elif scope["path"] == "/silent":
        WAITING.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass
    else:
        await PlainTextResponse(scope["path"])(scope, receive, send)


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """The address of a listener."""
    listening = socket.create_server(("127.0.0.1", 0))
    at = listening.getsockname()
    listener = Listener(listening, answer, "test")
    yield at
    assert listener.is_alive()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connected(at)


def connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, LONGEST)


def asked(address: tuple[str, int], request: bytes) -> bytes:
    """Send ``request``, and return all that comes until the end of the connection."""
    with connected(address) as connection:
        connection.sendall(request)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_one_request_is_answered_on_each_connection(address: tuple[str, int]) -> None:
    """If it failed, a client could hold a connection, or read an answer that it takes for another."""
    both = b"GET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = asked(address, both)
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (answers.count(b"HTTP/1.1"), answers.endswith(b"\r\n\r\n/one")) == (1, True)
    assert b"\r\nserver: refresher\r\n" in answers
    assert b"uvicorn" not in answers
    head = asked(address, b"HEAD /one HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head.endswith(b"content-length: 4\r\ncontent-type: text/plain; charset=utf-8\r\n\r\n")
    upgrade = b"GET /one HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert asked(address, upgrade).endswith(b"\r\n\r\n/one")
    with connected(address) as connection:
        connection.sendall(b"GET /one HTTP/1.0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection).endswith(b"\r\n\r\n/one"), "a client that sends no more still reads"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        b"\r\n\r\n\r\n\0",
    ],
)
def test_what_is_no_request_is_refused(address: tuple[str, int], request_: bytes) -> None:
    """If it failed, a client could use up memory with one request, or end the pages for others."""
    refused = asked(address, request_)
    assert refused[:13] in (b"", b"HTTP/1.1 400 ")
    assert b"200 OK" not in refused
    assert asked(address, b"GET /one HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n/one")


def test_a_body_is_not_read(address: tuple[str, int]) -> None:
    """If it failed, a client could use up memory or the processor with what it sends."""
    with connected(address) as connection:
        connection.sendall(b"POST /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"x" * 100_000_000)


@pytest.mark.parametrize("request_", [b"", b"GET /", b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_connection_ends_without_a_whole_request_or_answer(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    """If it failed, connections would pile up until no probe gets its answer."""
    monkeypatch.setattr(http_listener, "_TIMEOUT", 0.1)
    monkeypatch.setattr(http_listener, "_ANSWER_TIMEOUT", 0.1)
    with connected(address) as connection:
        connection.sendall(request_)
        assert read(connection) == b""


def test_when_all_slots_are_taken_the_oldest_loses_its_own(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """If it failed, idle or slow connections would keep a probe from its answer."""
    monkeypatch.setattr(http_listener, "_MAX_CONNECTIONS", 8)
    monkeypatch.setattr(http_listener, "_TIMEOUT", 1000.0)
    monkeypatch.setattr(http_listener, "_ANSWER_TIMEOUT", 1000.0)
    address = request.getfixturevalue("address")
    idle = [connected(address) for _ in range(6)]
    slow = [connected(address) for _ in range(2)]
    WAITING.clear()
    for each in slow:
        each.sendall(b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: len(WAITING) == 2, "both requests are whole")
    assert asked(address, b"GET /one HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n/one")
    assert read(idle[0]) == b""
    more = [connected(address) for _ in range(40)]
    assert [read(each) for each in (*idle, *slow)] == [b""] * 8
    assert asked(address, b"GET /one HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n/one")
    for each in (*slow, *idle, *more):
        each.close()


def test_streams_have_slots_of_their_own(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """If it failed, open pages would keep a probe from its answer, or a reader that stalls would hold memory."""
    monkeypatch.setattr(http_listener, "_MAX_CONNECTIONS", 8)
    monkeypatch.setattr(http_listener, "_MAX_STREAMS", 3)
    address = request.getfixturevalue("address")
    streams = []
    for _ in range(3):
        streams.append(connected(address))
        streams[-1].sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        assert streams[-1].recv(12) == b"HTTP/1.1 200"
    idle = [connected(address) for _ in range(20)]
    assert asked(address, b"GET /one HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n/one")
    assert all(each.recv(65536) for each in streams), "a stream lost its slot to a short request"
    assert asked(address, b"GET /stream HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 503 ")
    streams[0].close()
    wait_until(lambda: starts_stream(address), "the slot of a client that has gone is free")
    for each in (*streams, *idle):
        each.close()


def starts_stream(address: tuple[str, int]) -> bool:
    with connected(address) as connection:
        connection.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        return connection.recv(12) == b"HTTP/1.1 200"


def test_a_stream_whose_client_reads_nothing_ends(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, clients that never read would hold all streams."""
    monkeypatch.setattr(http_listener, "_STALLED", 0.1)
    monkeypatch.setattr(http_listener, "_MAX_STREAMS", 1)
    with connected(address) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: starts_stream(address), "its slot is free")


def test_a_listener_that_an_internal_error_ended_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the daemon would never open its pages again, and a probe would have it killed in an exchange."""
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(http_listener, "Connection", lambda *_: 1 / 0)
    listener = Listener(listening, answer, "health")
    assert listener.is_alive()
    with socket.create_connection(listening.getsockname()):
        wait_until(lambda: not listener.is_alive(), "it has ended")
    listener.close()
    assert listening.fileno() == -1


def test_a_listener_without_a_thread_leaves_no_open_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the socket would accept connections that nobody answers, and health would wait in vain."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        Listener(listening, answer, "health")
    assert listening.fileno() == -1
