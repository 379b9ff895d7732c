"""Answers without an end, and answers without a length that end too early."""

import gzip
import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from functools import cache

import pytest

from shim import FileTokenSource
from tests.support.answering import Answer, Answering
from tests.support.command import Command
from tests.support.peak import MEASURE, MIB
from tests.support.proxied import (
    outcomes,
)
from tests.support.raw_server import RawServer

GIB = 1024**3


def endless(head: bytes, chunk: bytes) -> Callable[[socket.socket], None]:
    """Answer with ``head`` and then 1 GiB."""

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(GIB // len(chunk)):
            connection.sendall(chunk)

    return send


@cache
def packed() -> bytes:
    """Return less than 1 MiB that decompresses to 128 MiB."""
    data = gzip.compress(bytes(GIB // 8), compresslevel=1)
    assert len(data) < 1024**2
    return data


def gzip_bomb(connection: socket.socket) -> None:
    """Answer with a small body that decompresses to a large one."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed())}\r\n\r\n"
    connection.sendall(head.encode() + packed())


@pytest.mark.parametrize(
    ("send", "kept"),
    [
        (endless(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB, b"x" * 65536), 1024**2),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1014 + b"\r\n"), None),
        (gzip_bomb, 1024**2),
    ],
    ids=["body", "header", "gzip"],
)
def test_a_very_large_answer_needs_little_memory(
    refresher: Command, send: Callable[[socket.socket], None], kept: int | None
) -> None:
    """If it failed, one broken server could exhaust the memory of the daemon, and no grant would be rotated."""
    packed()  # now, because it takes longer than a deadline allows
    first = {"access_token": "the-first-access-token", "refresh_token": "the-second-refresh-token", "expires_in": 3600}
    body = json.dumps(first).encode()
    refresher.vault.learn(first["access_token"], first["refresh_token"])
    measured = refresher.home / "measured"
    complete = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        if len(server.requests) == 1:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            send(connection)
            complete.set()

    def peak(code: int) -> int:
        prefix = (sys.executable, "-c", MEASURE, str(measured))
        done = refresher.finish(refresher.start("run-once", "--force", prefix=prefix))
        assert done.code == code, done.stderr
        return int(measured.read_text())

    with RawServer(answer) as server:
        fields = {"token_endpoint": server.token_endpoint, "client_id": "client", "server_url": "https://mcp.example"}
        refresher.import_grant("linear", {**fields, "refresh_token": "the-first-refresh-token"})
        usual = peak(0)
        assert peak(5) < 2 * usual
    if send is gzip_bomb:
        assert complete.wait(60)
    assert complete.is_set() is (send is gzip_bomb), "the whole answer was read"
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", first["access_token"])
    sizes = [(refresher.state / "grants" / name).stat().st_size for name in refresher.leftovers()]
    assert sizes == ([] if kept is None else [kept])


def test_a_truncated_form_of_unknown_length_replaces_no_token(refresher: Command) -> None:
    """If it failed, the first half of a refresh token would replace one that may still be valid (I6)."""
    half = b"access_token=the-next-access-token&expires_in=28800&refresh_token=the-next-ref"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
    with RawServer(lambda connection, _: connection.sendall(head + half)) as server:
        fields = {"token_endpoint": server.token_endpoint, "client_id": "client", "server_url": "https://mcp.example"}
        refresher.import_grant("linear", {**fields, "refresh_token": "the-first-refresh-token"})
        done = refresher("run-once", "--json")
    assert (done.code, outcomes(done)) == (5, {"linear": "in_doubt"}), done.stdout
    assert refresher.refresh_token("linear") == "the-first-refresh-token"
    (kept,) = refresher.leftovers()
    assert (refresher.state / "grants" / kept).read_bytes() == half


def test_refusals_of_very_large_refresh_tokens_need_little_memory(refresher: Command) -> None:
    """If it failed, a server that issues very large tokens could exhaust the memory of the daemon by refusing them."""
    names = [f"grant-{number}" for number in range(8)]
    refusal = {"error": "invalid_request", "error_description": "the server is not in the mood today"}
    measured = refresher.home / "measured"
    with Answering(**{"/token": Answer(400, refusal)}) as server:
        for name in names:
            fields = {"client_id": "client", "server_url": "https://mcp.example", "access_token": f"access-of-{name}"}
            token = secrets.token_urlsafe(525_000)
            refresher.bring(name, {**fields, "token_endpoint": f"{server.url}/token", "refresh_token": token})
        prefix = (sys.executable, "-c", MEASURE, str(measured))
        done = refresher.finish(refresher.start("run-once", "--force", "--json", prefix=prefix))
    assert (done.code, {result["outcome"] for result in done.results.values()}) == (4, {"transient"}), done.stderr
    assert 1024 * int(measured.read_text()) < 300 * MIB


def test_a_very_long_scope_does_not_hide_the_access_token(refresher: Command) -> None:
    """If it failed, refresher would report a success, and agents would refuse the token file as too large."""
    first = {"access_token": "the-first-access-token", "refresh_token": "the-second-refresh-token", "expires_in": 3600}
    refresher.vault.learn(first["access_token"], first["refresh_token"])
    with Answering(**{"/token": Answer(200, {**first, "scope": "\u00e9" * 150_000})}) as server:
        fields = {"token_endpoint": f"{server.url}/token", "client_id": "client", "server_url": "https://mcp.example"}
        refresher.bring("linear", {**fields, "refresh_token": "the-first-refresh-token"})
        done = refresher("run-once", "--force", "--json")
        again = refresher("run-once", "--json")
    assert (done.code, done.outcome, again.outcome) == (0, "rotated", "not_due"), done.stderr
    assert "no scope, because it would be larger than 256 KiB" in done.results["linear"]["detail"]
    source = FileTokenSource("linear", tokens_dir=refresher.tokens)
    assert (source.problem(), source.token()) == (None, first["access_token"])
    assert len(refresher.grant("linear").scope or "") == 150_000


def test_an_access_token_that_is_too_long_is_saved_and_reported(refresher: Command) -> None:
    """If it failed, refresher would report a success while agents keep a token that expires, or lose the login."""
    long = "a" * 300_000
    first = {"access_token": long, "refresh_token": "the-second-refresh-token", "expires_in": 3600}
    short = {**first, "access_token": "the-third-access-token", "refresh_token": "the-third-refresh-token"}
    refresher.vault.learn("the-first-access-token", "the-second-refresh-token", *short.values())
    with Answering() as server:
        server.answers["/token"] = [Answer(200, first), Answer(200, short)]
        fields = {"token_endpoint": f"{server.url}/token", "client_id": "client", "server_url": "https://mcp.example"}
        tokens = {"refresh_token": "the-first-refresh-token", "access_token": "the-first-access-token"}
        refresher.bring("linear", {**fields, **tokens, "expires_in": 3600})
        done = refresher("run-once", "--force", "--json")
        again = refresher("run-once", "--json")
        assert refresher.token("linear").access_token == "the-first-access-token"
        assert refresher.refresh_token("linear") == "the-second-refresh-token"
        last = refresher("run-once", "--force", "--json")
    for run in (done, again):
        assert (run.code, run.outcome) == (4, "storage_failed"), run.stderr
        assert "saved, but the access token of linear is too long" in run.results["linear"]["detail"]
    assert server.seen == ["POST /token"] * 2, "a token that cannot be published is no reason for another exchange"
    assert (last.code, last.outcome) == (0, "rotated"), last.stderr
    assert refresher.token("linear").access_token == "the-third-access-token"
