"""Lost, late, broken and endless answers, from real sockets."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.grants.outcome import Ambiguous, GrantRejected, NotSent, TokensIssued, TooEarly, Transient, Unreadable
from refresher.oauth.token_request import TokenRequestResult, request_tokens
from tests.support.hooks import Recording
from tests.support.raw_server import RawServer
from tests.support.samples import grant

Answer = Callable[[socket.socket, bytes], None]

GOOD = json.dumps({"access_token": "new-access-token", "refresh_token": "new-refresh-token", "expires_in": 60}).encode()


def _exchange(
    server: RawServer, hooks: Recording | None = None, deadline: float = 60.0, **changes: Any
) -> TokenRequestResult:
    sent = msgspec.structs.replace(grant(), token_endpoint=server.token_endpoint, **changes)
    return request_tokens(sent, ca_file=None, hooks=hooks or Recording(), deadline=deadline)


def _http(body: bytes, *headers: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % (len(body) if length is None else length), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _send(data: bytes) -> Answer:
    return lambda connection, _: connection.sendall(data)


def _hang(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)  # until the client gives up


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_send(_http(GOOD)), TokensIssued),
        (_send(b""), Ambiguous),
        (_send(b"HTTP/1.1 200"), Ambiguous),
        (_send(b"\x16\x03\x01garbage"), Ambiguous),
        (_send(_http(GOOD[:40], length=len(GOOD))), Unreadable),
        (_send(_http(GOOD, length=len(GOOD) + 5)), TokensIssued),
        (_send(_http(b"", status=b"500 Oops")), Ambiguous),
        (_send(_http(b"<html>", status=b"404 Not Found")), Transient),
        (_send(_http(GOOD, b"Content-Encoding: gzip")), TokensIssued),
        (_send(_http(GOOD, b"Content-Encoding: zebra")), TokensIssued),
        (_send(_http(b"\x1f\x8bno gzip", b"Content-Encoding: gzip")), Unreadable),
    ],
)
def test_the_outcome_depends_on_what_was_sent_and_received(answer: Answer, kind: type) -> None:
    """If it failed, a lost answer would look like an unsent request, and a used refresh token would be sent again."""
    with RawServer(answer) as server:
        hooks = Recording()
        answered = _exchange(server, hooks)
    assert type(answered.outcome) is kind, answered.outcome
    assert hooks.marks == 1
    assert len(server.requests) == 1
    assert answered.sent is not None


def test_an_unrequested_gzip_answer_is_read() -> None:
    """If it failed, every rotation behind a compressing proxy would be in doubt."""
    import gzip

    with RawServer(_send(_http(gzip.compress(GOOD), b"Content-Encoding: gzip"))) as server:
        assert isinstance(_exchange(server).outcome, TokensIssued)
    assert b"accept-encoding: identity" in server.requests[0].lower()


def test_a_refused_connection_counts_as_not_sent() -> None:
    """If it failed, the restart of a server would put its grants in doubt."""
    with RawServer(_send(b"")) as server:
        pass
    hooks = Recording()
    answered = _exchange(server, hooks)
    assert isinstance(answered.outcome, NotSent)
    assert (hooks.marks, answered.sent) == (0, None)


def test_nothing_is_sent_if_the_mark_cannot_be_written() -> None:
    """If it failed, a request could be sent without the mark that recovery needs after a crash (I1)."""
    with RawServer(_send(_http(GOOD))) as server:
        answered = _exchange(server, Recording(OSError(5, "Input/output error")))
    assert isinstance(answered.outcome, NotSent)
    assert server.requests == []


@pytest.mark.parametrize("where", ["never", "headers", "body"])
def test_one_deadline_covers_the_whole_request(where: str) -> None:
    """If it failed, a server that sends one byte per second would hold the lock of a grant for ever."""

    def drip(connection: socket.socket, request: bytes) -> None:
        if where == "never":
            _hang(connection, request)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if where == "headers" else b"Content-Length: 9999\r\n\r\n")
        )
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)  # the fault under test, not a wait

    with RawServer(drip) as server:
        answered = _exchange(server, deadline=3.0)
    assert isinstance(answered.outcome, Unreadable if where == "body" else Ambiguous)


def test_the_deadline_also_covers_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a dead name server would hold the lock of a grant longer than others wait for it."""
    # A fake, because no configuration makes a resolver on loopback hang.
    release = threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "localhost":
            release.wait(120)
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    done: list[TokenRequestResult] = []

    def run() -> None:
        sent = grant(token_endpoint="http://localhost:9/token")
        done.append(request_tokens(sent, ca_file=None, hooks=Recording(), deadline=0.5))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    has_ended = not thread.is_alive()
    release.set()
    assert has_ended
    assert [type(answered.outcome) for answered in done] == [NotSent]


def test_an_endless_body_is_truncated_and_saved() -> None:
    """If it failed, a server could fill the memory, or the start of its answer would be lost."""

    def flood(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    hooks = Recording()
    with RawServer(flood) as server:
        answered = _exchange(server, hooks)
    assert isinstance(answered.outcome, Unreadable)
    assert hooks.answers == [b"x" * 1024 * 1024]


def test_a_redirect_is_not_followed() -> None:
    """If it failed, one forged answer of a token endpoint could send refresh tokens to any server (I8)."""
    with RawServer(_send(_http(GOOD))) as foreign:
        location = b"Location: " + foreign.token_endpoint.encode()
        for status in (b"301 Moved", b"302 Found", b"307 Temporary Redirect", b"308 Permanent Redirect"):
            with RawServer(_send(_http(b"", location, status=status))) as server:
                assert isinstance(_exchange(server).outcome, Transient)
        assert foreign.requests == []


def _once_then(first: Answer, then: Answer) -> Answer:
    answers = iter([first])
    return lambda connection, request: next(answers, then)(connection, request)


@pytest.mark.parametrize(("replay", "requests"), [(None, 2), (30.0, 2), (0.0, 1)])
def test_a_lost_answer_is_replayed_only_where_the_server_allows_it(replay: float | None, requests: int) -> None:
    """If it failed, a used token would be sent to a server that then revokes the grant, or a grace period would be wasted (I1)."""
    with RawServer(_once_then(_send(b""), _send(_http(GOOD)))) as server:
        answered = _exchange(server, replay=replay)
    assert len(server.requests) == requests
    assert type(answered.outcome) is (TokensIssued if requests == 2 else Ambiguous)


def test_no_replay_after_the_grace_period_ended_during_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a slow connection would send a used token to a server that then revokes the grant (I1)."""
    # A fake clock: the time passes between the decision to replay and the first byte.
    late = [0.0]
    real = clocks.now

    def now() -> Moment:
        moment = real()
        later = {"monotonic": moment.monotonic + late[0], "boottime": moment.boottime + late[0]}
        return msgspec.structs.replace(moment, wall=moment.wall + late[0], **later)

    monkeypatch.setattr(clocks, "now", now)
    resolve = socket.getaddrinfo
    lookups = []

    def slow(*arguments: Any, **more: Any) -> Any:
        lookups.append(1)
        late[0] += 40.0 * (len(lookups) > 1)
        return resolve(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with RawServer(_send(b"")) as server:
        server.token_endpoint = server.token_endpoint.replace("127.0.0.1", "localhost")
        live = real().wall
        answered = _exchange(server, replay=30.0, issued_at=live, expires_at=live + 3600)
    assert len(lookups) == 2, "no replay was started"
    assert len(server.requests) == 1
    assert isinstance(answered.outcome, Ambiguous)


def test_a_replay_shares_the_deadline() -> None:
    """If it failed, a first request that hangs would leave no time for the replay that saves the grant."""
    with RawServer(_once_then(_hang, _send(_http(GOOD)))) as server:
        answered = _exchange(server, replay=None, deadline=8.0)
    assert isinstance(answered.outcome, TokensIssued)
    assert len(server.requests) == 2


def test_an_unreadable_answer_is_saved_before_the_replay() -> None:
    """If it failed, a rejected replay would drop the only copy of a new refresh token (I6)."""
    refusal = _http(b'{"error": "invalid_grant"}', status=b"400 Bad Request")
    hooks = Recording()
    with RawServer(_once_then(_send(_http(GOOD[:40], length=len(GOOD))), _send(refusal))) as server:
        answered = _exchange(server, hooks, replay=None)
    assert hooks.answers == [GOOD[:40]]
    assert isinstance(answered.outcome, GrantRejected)
    assert answered.doubt is not None, "the rejection would not say that the rotation was lost"


def test_a_replay_that_settles_nothing_keeps_the_doubt() -> None:
    """If it failed, a 503 to the replay would hide that the first answer was lost (I1)."""
    with RawServer(_once_then(_send(b""), _send(_http(b"", status=b"503 Busy")))) as server:
        answered = _exchange(server, replay=None)
    assert isinstance(answered.outcome, Ambiguous)
    assert answered.doubt is not None
    assert answered.sent is not None
    assert answered.doubt.since.boottime < answered.sent.boottime, "the doubt began with the second request"


@pytest.mark.parametrize(
    ("since_expiry", "demanded", "kind"),
    [
        (-600.0, False, TooEarly),
        (0.5, False, TooEarly),
        (300.0, False, GrantRejected),
        (-600.0, True, TooEarly),
        (300.0, True, GrantRejected),
    ],
)
def test_a_server_that_refuses_early_can_reject_only_after_the_expiry(
    since_expiry: float, demanded: bool, kind: type
) -> None:
    """If it failed, a valid grant would be ended at the expiry of its token, or by one false demand."""
    refusal = _http(b'{"error": "invalid_grant"}', status=b"400 Bad Request")
    expires_at = clocks.now().wall - since_expiry
    with RawServer(_send(refusal)) as server:
        sent = grant(
            token_endpoint=server.token_endpoint, refuses_early=True, issued_at=expires_at - 3600, expires_at=expires_at
        )
        answered = request_tokens(sent, ca_file=None, hooks=Recording(), demanded=demanded)
    assert type(answered.outcome) is kind
    assert getattr(answered.outcome, "refusal", False) is (demanded and kind is TooEarly), (
        "it would never be reported to a person"
    )
