"""Requests through the gateway, to a server that sends raw bytes, from an agent that reads raw bytes."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refresher.gateway import forwarding
from shim import Problem
from tests.support.gateway import Agent, gateway
from tests.support.published import DEAD, Published
from tests.support.raw_server import RawServer

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


class Site:
    """A server, and the grant for it."""

    def __init__(self, root: Path, server: RawServer) -> None:
        self.server = server
        self.origin = server.token_endpoint.removesuffix("/token")
        self.published = Published(root, self.origin)
        self.published.put(1)

    def run(self, agent: Callable[[Agent], Awaitable[Any]], program: str = "refresher") -> Any:
        """Let an agent work with a gateway, and return what it returns."""

        async def work() -> Any:
            async with gateway(self.published, program) as made, asyncio.timeout(90):
                return await agent(made)

        return asyncio.run(work())


@contextmanager
def site(
    root: Path, answer: bytes | Callable[[socket.socket, bytes], None], marker: bytes = b"\r\n\r\n"
) -> Iterator[Site]:
    """Serve one answer."""

    def send(connection: socket.socket, request: bytes) -> None:
        connection.sendall(answer) if isinstance(answer, bytes) else answer(connection, request)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass  # what is not read would reset the connection, and with it the answer

    with RawServer(send, marker=marker) as server:
        yield Site(root, server)


def refusing(*authorizations: str, challenge: str = 'Bearer error="invalid_token", resource_metadata="https://x"') -> Callable[[socket.socket, bytes], None]:  # fmt: skip
    """Answer 401 to these tokens."""

    def answer(connection: socket.socket, request: bytes) -> None:
        refused = any(f"Bearer {each}\r\n".encode() in request for each in authorizations)
        text = f"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 5\r\n\r\nlogin"
        connection.sendall(text.encode() if refused else OK)

    return answer


def test_a_request_arrives_as_it_was_sent_with_the_token(tmp_path: Path) -> None:
    """If it failed, servers would get other paths and headers than agents send, or the keys of agents."""
    target = "/a/../b//%2f%2E?x=%zz&y=a/../b?"

    async def work(agent: Agent) -> None:
        headers = ("Accept-Encoding: gzip", "Origin: http://localhost", "Cookie: a=b", "X-Many: 1", "X-Many: 2")
        for prefix in ("/linear", f"/{agent.key}/linear", f"/linear/@{sites.origin.partition('://')[2]}"):
            found = await agent.ask(prefix + target, *headers, method="PATCH", body=b"body")
            assert (found.status, found.body) == (200, b"ok")
            found = await agent.ask(prefix)
            assert found.status == 200

    with site(tmp_path, OK) as sites:
        sites.run(work)
    host = sites.origin.partition("://")[2]
    for changed, plain in zip(sites.server.requests[::2], sites.server.requests[1::2], strict=True):
        assert changed.decode() == (
            f"PATCH {target} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: gzip\r\nX-Many: 1\r\nX-Many: 2\r\n"
            "Authorization: Bearer access-token-1\r\nContent-Length: 4\r\n\r\nbody"
        )
        assert plain.decode() == f"GET / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer access-token-1\r\n\r\n"


def test_a_refused_token_is_replaced_and_the_request_is_sent_again(tmp_path: Path) -> None:
    """If it failed, agents behind the gateway would lose calls when a token is revoked."""

    async def work(agent: Agent) -> None:
        asked = [asyncio.create_task(agent.ask("/linear/mcp", method="POST", body=b"{}")) for _ in range(5)]
        while not sites.published.demanded():
            await asyncio.sleep(0.01)
        assert sites.published.demanded() == ["linear.1"]
        sites.published.put(2)
        answers = await asyncio.gather(*asked)
        assert [each.status for each in answers] == [200] * 5, [each.body for each in answers]

    with site(tmp_path, refusing("access-token-1"), b"\r\n\r\n{}") as sites:
        sites.run(work)
    assert sites.server.requests[-1].endswith(b"\r\n\r\n{}")


def test_a_long_body_is_not_sent_again_and_the_agent_reads_so(tmp_path: Path) -> None:
    """If it failed, the gateway would hold bodies of any size in memory, or send half of one."""

    async def work(agent: Agent) -> None:
        chunked = agent.head("/linear", "Transfer-Encoding: chunked", "Connection: close", method="POST")
        for found in (
            await agent.ask("/linear", method="POST", body=b"x" * 70_000),
            await agent.send(chunked + b"2\r\n{}\r\n0\r\n\r\n"),
        ):
            assert (found.status, json.loads(found.body)["error"]) == (503, "send_again")
            assert "Retry-After: 5\r\n" in found.head
        sites.published.put(1, state="failing", error=Problem("server_error", "x", 1.0, time.time() + 3600))
        found = await agent.ask("/linear", method="POST", body=b"x" * 70_000)
        assert "Retry-After: 3" in found.head
        assert "Retry-After: 3\r\n" not in found.head

    with site(tmp_path, refusing("access-token-1")) as sites:
        sites.run(work)
    assert sites.published.demanded() == ["linear.1"]
    assert len(sites.server.requests) == 3


@pytest.mark.parametrize(
    ("changes", "challenge", "status", "error", "command"),
    [
        ({"state": "reauthorization_required", "error": DEAD}, "Bearer", 503, "needs_reauth", "login linear"),
        ({"state": "removed", "access_token": None}, "Bearer", 503, "needs_reauth", "login linear URL"),
        ({}, "Basic realm=x", 502, "token_rejected", None),
        ({}, 'Bearer error="insufficient_scope", scope="write"', 403, "insufficient_scope", "login linear --scope write"),
        ({}, "Bearer", 502, "token_rejected", None),
    ],
)  # fmt: skip
def test_no_challenge_reaches_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], challenge: str, status: int, error: str, command: str | None) -> None:  # fmt: skip
    """If it failed, an MCP client would begin a login of its own, where a person must run a command."""
    monkeypatch.setattr(forwarding, "DEFAULT_WAIT", 0.1)
    program = "refresher --state-dir '/some where'"

    async def work(agent: Agent) -> None:
        found = await agent.ask("/linear/mcp")
        fields = json.loads(found.body)
        assert (found.status, fields["error"]) == (status, error)
        assert fields.get("command") == (command and f"{program} {command}")
        assert "refresher login" not in fields["message"]  # without the options of the directories
        assert "www-authenticate" not in found.names

    with site(tmp_path, refusing("access-token-1", challenge=challenge)) as sites:
        sites.published.put(1, **changes)
        sites.run(work, program)


def test_an_ordinary_403_passes_without_the_challenge(tmp_path: Path) -> None:
    """If it failed, an agent would not read why a server refuses a call."""

    async def work(agent: Agent) -> None:
        found = await agent.ask("/linear/x")
        assert (found.status, found.body) == (403, b"no")
        assert "www-authenticate" not in found.names

    text = b"HTTP/1.1 403 Forbidden\r\nWWW-Authenticate: Basic\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nno"
    with site(tmp_path, text) as sites:
        sites.run(work)


def test_a_redirect_stays_in_the_gateway(tmp_path: Path) -> None:
    """If it failed, an agent would follow a redirect past the gateway, without a token or with its key."""
    address = "/login"

    def redirect(connection: socket.socket, request: bytes) -> None:
        connection.sendall(f"HTTP/1.1 307 Moved\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode())

    async def work(agent: Agent) -> None:
        nonlocal address
        found = await agent.ask(f"/{agent.key}/linear/x")
        assert f"Location: /{agent.key}/linear/login\r\n" in found.head + "\r\n"
        address = f"{sites.origin}/a%2Fb?c"
        assert "Location: /linear/a%2Fb?c\r\n" in (await agent.ask("/linear/x")).head + "\r\n"
        address = "https://evil.example/?token=secret"
        found = await agent.ask("/linear/x")
        assert (found.status, json.loads(found.body)["error"]) == (502, "leads_away")
        assert b"evil.example" in found.body
        assert b"secret" not in found.body

    with site(tmp_path, redirect) as sites:
        sites.run(work)


def test_what_was_made_elsewhere_is_still_reported(tmp_path: Path) -> None:
    """If it failed, an agent would make it again, because it did not learn that it exists."""

    async def work(agent: Agent) -> None:
        found = await agent.ask("/linear/x", method="POST")
        assert (found.status, found.body) == (201, b"ok")
        assert "location" not in found.names

    text = b"HTTP/1.1 201 Created\r\nLocation: https://cdn.example/1\r\nContent-Length: 2\r\n\r\nok"
    with site(tmp_path, text) as sites:
        sites.run(work)


def test_events_arrive_while_the_stream_is_open_and_an_agent_that_goes_ends_it(tmp_path: Path) -> None:
    """If it failed, events would be held back, or servers would send to agents that are gone."""
    gone = threading.Event()

    def stream(connection: socket.socket, request: bytes) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: endpoint\ndata: /m?s=1\n\n"
        )
        assert connection.recv(1) == b""  # until the gateway closes the connection
        gone.set()

    async def work(agent: Agent) -> None:
        reader, writer = await agent.open(agent.head("/linear/sse", "Accept: text/event-stream"))
        assert b"data: /linear/m?s=1\n\n" in await reader.readuntil(b"\n\n\r\n")
        writer.close()
        assert await asyncio.to_thread(gone.wait, 60)

    with site(tmp_path, stream) as sites:
        sites.run(work)


def test_no_event_leads_an_agent_out_of_the_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a server could have an agent send its key elsewhere, whatever the agent accepts."""
    head, foreign = "", b"data: x\n\nevent: endpoint\ndata: https://evil.example/\n\n"

    def stream(connection: socket.socket, request: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + foreign)

    async def work(agent: Agent) -> None:
        nonlocal head
        for kind in ("text/event-stream", "Text/Event-Stream; charset=UTF-8"):
            for accepted in ("text/event-stream", "*/*"):
                head = f"Content-Type: {kind}"
                found = await agent.ask("/linear/sse", f"Accept: {accepted}")
                assert (found.status, b"evil" in found.body, found.body.endswith(b"0\r\n\r\n")) == (200, False, False)
        assert "linear: gateway: leads_away" in caplog.text
        for more in (
            "Content-Type: text/plain\r\nContent-Type: text/event-stream",
            "Content-Type: text/event-stream\r\nContent-Encoding: gzip",
            "Content-Type: text/event-stream\r\nContent-Encoding: identity\r\nContent-Encoding: br",
            "Content-Type: text/event-stream; charset=utf-7",
        ):
            head = more
            found = await agent.ask("/linear/sse", "Accept-Encoding: gzip")
            assert (found.status, json.loads(found.body)["error"]) == (502, "bad_answer"), more
        assert b"gzip" not in sites.server.requests[0]
        assert (await agent.ask("/linear/sse", method="POST")).status == 200

    with site(tmp_path, stream) as sites:
        sites.run(work)


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_an_answer_that_breaks_off_looks_broken(tmp_path: Path, framing: str) -> None:
    """If it failed, an agent would take half of an answer for the whole."""
    part = b"3\r\nabc\r\n" if "chunked" in framing else b"abc"

    async def work(agent: Agent) -> None:
        found = await agent.send(agent.head("/linear"))
        assert found.body == part
        assert found.status == 200

    with site(tmp_path, f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + part) as sites:
        sites.run(work)


def test_bodies_stream_both_ways_unchanged(tmp_path: Path) -> None:
    """If it failed, an upload would wait for its end, or compressed bodies would be changed."""

    def echo(connection: socket.socket, request: bytes) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
        )
        data = request.partition(b"\r\n\r\n")[2]
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(1000)
        connection.sendall(b"5\r\nhello\r\n0\r\nX: dropped\r\n\r\n")

    async def work(agent: Agent) -> None:
        expecting = ("Transfer-Encoding: chunked", "Expect: 100-continue", "Content-Encoding: gzip")
        reader, writer = await agent.open(agent.head("/linear", *expecting, method="POST"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"4\r\nbegi\r\n")
        assert b"Content-Encoding: gzip\r\n" in await reader.readuntil(b"\r\n\r\n")  # before the body has ended
        writer.write(b"4\r\n end\r\n0\r\n\r\n")
        assert await reader.readuntil(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"
        writer.close()

    with site(tmp_path, echo) as sites:
        sites.run(work)
    assert b"Content-Encoding: gzip\r\n" in sites.server.requests[0]
    assert b"Expect" not in sites.server.requests[0]


def test_an_agent_that_goes_during_its_upload_ends_the_request(tmp_path: Path) -> None:
    """If it failed, a server would take half of an upload for the whole."""
    received = b""
    ended = threading.Event()

    def read(connection: socket.socket, request: bytes) -> None:
        nonlocal received
        received = request
        try:
            while data := connection.recv(65536):
                received += data
        finally:
            ended.set()

    async def work(agent: Agent) -> None:
        _, writer = await agent.open(
            agent.head("/linear", "Transfer-Encoding: chunked", method="POST") + b"2\r\nab\r\n"
        )
        while not sites.server.requests:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        assert await asyncio.to_thread(ended.wait, 60)

    with site(tmp_path, read) as sites:
        sites.run(work)
    assert not received.endswith(b"0\r\n\r\n")


def test_head_has_the_length_and_no_body(tmp_path: Path) -> None:
    """If it failed, a HEAD request would hang, or lie about the length."""

    async def work(agent: Agent) -> None:
        found = await agent.ask("/linear", method="HEAD")
        assert (found.status, found.body) == (200, b"")
        assert "Content-Length: 12345" in found.head

    with site(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n") as sites:
        sites.run(work)


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (b"", 502, "unreachable"),
        (b"garbage\r\n\r\n", 502, "bad_answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, 502, "bad_answer"),
        (None, 504, "no_answer"),
    ],
)
def test_a_server_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, status: int, error: str) -> None:  # fmt: skip
    """If it failed, an agent would wait without an end, or not learn which server fails."""
    monkeypatch.setattr(forwarding, "_ANSWER_TIMEOUT", 0.2 if answer is None else 60.0)

    def silent(connection: socket.socket, request: bytes) -> None:
        connection.recv(1)

    async def work(agent: Agent) -> None:
        found = await agent.ask("/linear?key=secret")
        fields = json.loads(found.body)
        assert (found.status, fields["error"]) == (status, error), fields
        assert sites.origin in fields["message"]
        assert "secret" not in fields["message"]

    with site(tmp_path, silent if answer is None else answer) as sites:
        sites.run(work)


def test_a_server_that_is_away_or_not_trusted_is_named(tmp_path: Path) -> None:
    """If it failed, an agent would read a Python error, or nothing."""

    async def work(agent: Agent) -> None:
        for origin, words in (
            ("http://127.0.0.1:1", "connection refused"),
            ("http://nowhere.invalid", "its name is not known"),
            (sites.origin.replace("http:", "https:"), "TLS fails"),
        ):
            sites.published.put(2, origins=(origin,))
            found = await agent.ask("/linear/x")
            assert (found.status, json.loads(found.body)["message"]) == (502, f"cannot reach {origin}: {words}")

    with site(tmp_path, b"no TLS here", b"") as sites:
        sites.run(work)


def test_senders_and_servers_cannot_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a program without a key, or a server that breaks off its answers, could fill the disk."""

    async def work(agent: Agent) -> None:
        for number in range(5):
            assert (await agent.ask(f"/RGK-wrong{number}/linear/x")).status == 403
            assert (await agent.ask(f"/unknown{number}/x")).status == 404
            assert (await agent.send(agent.head(f"/linear/x{number}"))).status == 200  # and breaks off

    with site(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") as sites:
        sites.run(work)
    kinds = [record.getMessage().split(": ")[2] for record in caplog.records if record.levelname == "WARNING"]
    assert kinds == ["wrong_key", "unknown_grant", f"truncated at {sites.origin}"]


def test_what_is_no_request_for_a_grant_is_refused(tmp_path: Path) -> None:
    """If it failed, the gateway would be an open proxy, or forward without a key."""

    async def work(agent: Agent) -> None:
        for request, status in (
            (agent.head("http://evil.example/", "Connection: close"), 400),
            (agent.head("evil.example:443", "Connection: close", method="CONNECT"), 501),
            (agent.head("/linear", "Connection: close", method="TRACE"), 501),
            (agent.head("/linear", "Connection: Upgrade", "Upgrade: websocket"), 501),
            (agent.head("/nobody", "Connection: close"), 404),
            (b"GET /linear HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
            (b"GET /linear HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 403),
            (b"GET /linear HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (b"GET /linear HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 400),
        ):
            reader, writer = await agent.open(request)
            found = await reader.readuntil(b"\r\n\r\n")
            assert int(found.split()[1]) == status, request[:60]
            writer.close()

    with site(tmp_path, OK) as sites:
        sites.run(work)
    assert not sites.server.requests
