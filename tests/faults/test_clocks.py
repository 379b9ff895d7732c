"""Clocks that are set, on this machine or at the server: no storm of requests, no early replay, no longer waits."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from functools import partial
from socket import socket
from threading import Event
from typing import Any, Self

import pytest

from refresher.grants import policy
from tests.conftest import need
from tests.support.clock import Clock, no_clock
from tests.support.command import Command, wait_until
from tests.support.daemon import published, running, stopped
from tests.support.oidc import OIDC
from tests.support.raw_server import RawServer
from tests.support.samples import grant, jwt

Start = Callable[..., OIDC]

HOUR = 3600
LONGEST_NOTICE = 37.0
GRACE = 3.0


class Server:
    """A token endpoint of one grant; ``behavior``: normal, busy, or lost (it closes the connection without an answer)."""

    def __init__(self, answer: Callable[[], Mapping[str, Any]], ahead: float = 0.0) -> None:
        self.behavior = "normal"
        self.release = Event()
        self.release.set()
        self.headers = ""
        self._tokens = answer
        self._ahead = ahead
        self._raw = RawServer(self._answer)

    def __enter__(self) -> Self:
        self._raw.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.release.set()
        self._raw.__exit__(*error)

    @property
    def request_count(self) -> int:
        """Return the number of its requests."""
        return len(self._raw.requests)

    def fields(self, **more: Any) -> dict[str, Any]:
        """Return the fields of an import."""
        return {
            "token_endpoint": self._raw.token_endpoint,
            "client_id": "client",
            "refresh_token": f"refresh-token-of-{id(self)}",
            "server_url": "https://mcp.example/mcp",
            **more,
        }

    def _answer(self, connection: socket, request: bytes) -> None:
        behavior = self.behavior
        self.release.wait(60)
        if behavior == "lost":
            return
        body = json.dumps(self._tokens() if behavior == "normal" else {}).encode()
        date = formatdate(time.time() + self._ahead, usegmt=True)
        status = "200 OK" if behavior == "normal" else "503 Service Unavailable"
        head = f"HTTP/1.1 {status}\r\nDate: {date}\r\n{self.headers}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


def new_tokens() -> dict[str, Any]:
    """Return an access token with a lifetime of an hour, and a refresh token."""
    number = time.monotonic_ns()
    return {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": HOUR}


# --- the clock of this machine ------------------------------------------------------------------------------------


@contextmanager
def grants_in_every_state(refresher: Command, clock: Clock) -> Iterator[dict[str, Server]]:
    """Make five grants: one works, one backs off, two are in doubt, and the answer of one is held."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(Server(new_tokens)) for name in ("working", "busy", "lost", "grace", "held")
        }
        for name, server in servers.items():
            refresher.import_grant(name, server.fields(replay=f"{GRACE:.0f}s" if name == "grace" else "none"))
        assert refresher("run-once", environment=clock.environment).code == 0
        servers["busy"].headers = "Retry-After: 120\r\n"
        for name in ("busy", "lost", "grace"):
            servers[name].behavior = "busy" if name == "busy" else "lost"
        failing = refresher("run-once", "--force", "--json", "busy", "lost", "grace", environment=clock.environment)
        outcomes = {name: result["outcome"] for name, result in failing.results.items()}
        assert outcomes == {"busy": "transient", "lost": "in_doubt", "grace": "in_doubt"}
        for server in servers.values():
            server.behavior = "normal"
        servers["held"].release.clear()
        yield servers


def check(refresher: Command, clock: Clock, servers: Mapping[str, Server]) -> None:
    """Check the requests of each server, and that the times of new tokens follow the clock as it is now."""
    # One request for the first token and one for the state; two after a lost answer with a grace period.
    expected = {"working": 2, "busy": 2, "lost": 2, "grace": 3, "held": 3}
    assert {name: server.request_count for name, server in servers.items()} == expected
    for name in ("working", "held"):
        token = refresher.token(name)
        assert token.state == "active"
        assert token.expires_at == token.issued_at + HOUR
        assert abs(token.issued_at - clock.now()) < 60
    assert {name: refresher.token(name).state for name in ("busy", "lost", "grace")} == dict.fromkeys(
        ("busy", "lost", "grace"), "failing"
    )


def grace_period_is_over(since: float) -> bool:
    """Whether the grace period has ended by the monotonic clock, which nobody sets."""
    return time.monotonic() > since + GRACE


@pytest.mark.parametrize("jump", ["-2h", "-1d", "+2h"])
def test_a_daemon_whose_clock_is_set_sends_each_server_at_most_one_request(refresher: Command, jump: str) -> None:
    """If it failed, a laptop that resumes would use expired tokens, send many requests, or replay a spent token (I1)."""
    need(no_clock())
    clock = Clock(refresher.home)
    demands = refresher.state / "demands"
    with (
        grants_in_every_state(refresher, clock) as servers,
        running(refresher, environment=clock.environment) as daemon,
    ):
        since = time.monotonic()
        (demands / "held.1").touch()
        wait_until(lambda: servers["held"].request_count == 2, "an exchange is under way")
        clock.set(jump)
        wait_until(lambda: published(refresher, "working") == 2, f"the jump of {jump} is noticed", LONGEST_NOTICE)
        servers["held"].release.set()
        wait_until(
            lambda: published(refresher, "held") == 3, "a token issued by another clock is replaced", LONGEST_NOTICE
        )
        wait_until(partial(grace_period_is_over, since), "the grace period is over")
        for name in servers:
            (demands / f"{name}.0").touch()
        wait_until(lambda: not list(demands.iterdir()), "the daemon has read the demands since")
        check(refresher, clock, servers)
        log = stopped(refresher, daemon)
        assert "fault" not in log
    assert refresher.leftovers() == []


@pytest.mark.parametrize("jump", ["-2h", "+2h"])
def test_runs_whose_clock_is_set_between_them_send_each_server_at_most_one_request(
    refresher: Command, jump: str
) -> None:
    """If it failed, run-once would send requests that the daemon does not send (I9)."""
    need(no_clock())
    clock = Clock(refresher.home)
    with grants_in_every_state(refresher, clock) as servers:
        since = time.monotonic()
        process = refresher.start("run-once", "--force", "--json", "held", environment=clock.environment)
        wait_until(lambda: servers["held"].request_count == 2, "an exchange is under way")
        clock.set(jump)
        servers["held"].release.set()
        assert refresher.finish(process).outcome == "rotated"
        wait_until(partial(grace_period_is_over, since), "the grace period is over")
        outcomes = []
        for options in ([], [], ["--force", "lost", "grace"]):
            done = refresher("run-once", "--json", *options, environment=clock.environment)
            outcomes.append({name: result["outcome"] for name, result in done.results.items()})
        waiting = {"busy": "transient", "lost": "in_doubt", "grace": "in_doubt"}
        assert outcomes == [
            {"working": "rotated", "held": "rotated", **waiting},
            {"working": "not_due", "held": "not_due", **waiting},
            {"lost": "in_doubt", "grace": "in_doubt"},
        ]
        check(refresher, clock, servers)
    assert refresher.leftovers() == []


def test_a_clock_set_back_by_half_an_hour_makes_no_backoff_longer(refresher: Command) -> None:
    """If it failed, a backoff of seconds would become one of half an hour, and the access token would expire."""
    need(no_clock())
    clock = Clock(refresher.home)
    # The first backoff is 5 to 15 s, by the name: this name has a short one.
    name = next(
        name for name in map("g{}".format, range(1000)) if policy.backoff(grant(name=name, generation=1), 1) < 6
    )
    with Server(new_tokens) as server:
        refresher.import_grant(name, server.fields())
        assert refresher("run-once", environment=clock.environment).code == 0
        server.behavior = "busy"
        assert refresher("run-once", "--force", environment=clock.environment).code == 4
        server.behavior = "normal"
        clock.set("-30m")
        with running(refresher, environment=clock.environment) as daemon:
            wait_until(lambda: published(refresher, name) == 2, "the grant is rotated", LONGEST_NOTICE)
            stopped(refresher, daemon)


def test_a_daemon_notices_each_jump_of_the_clock(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a laptop that resumes would use expired tokens, and a clock set back would stop every rotation."""
    need(no_clock())
    clock = Clock(refresher.home)
    server = own_oidc()

    def changed(before: int) -> bool:
        return published(refresher) != before

    refresher.import_grant("linear", server.mint("public"))
    with running(refresher, environment=clock.environment) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is published")
        for to in ("+2h", "+0s", "+1d", "-2h"):
            before = published(refresher)
            clock.set(to)
            wait_until(partial(changed, before), f"the jump to {to} is noticed", LONGEST_NOTICE)
        assert published(refresher) == 5
        issued = refresher.token("linear").issued_at
        assert abs(issued + 7200 - time.time()) < 600, "the time of issue is by another clock"
        # The daemon removes a demand for an older generation: so it has read the directory, and found nothing to rotate.
        (refresher.state / "demands/linear.1").touch()
        wait_until(lambda: not list((refresher.state / "demands").iterdir()), "the daemon has read the demands")
        assert len(server.requests()) == 5, "one jump caused several rotations"
        stopped(refresher, process)
    assert server.log()["reused"] == 0


# --- the clock of the server --------------------------------------------------------------------------------------


def tokens_by_another_clock(key: str, ahead: float) -> dict[str, Any]:
    """Return tokens with a lifetime of five minutes; ``key`` has their expiry, by a clock that is ``ahead``."""
    tokens, expiry = new_tokens(), int(time.time() + ahead + 300)
    del tokens["expires_in"]
    return tokens | {key: jwt(exp=expiry, iat=expiry - 300) if key == "access_token" else expiry}


def test_a_server_whose_clock_is_wrong_by_minutes_gets_one_request_for_a_token(refresher: Command) -> None:
    """If it failed, a token of five minutes would be refreshed each second, or used ten minutes after its expiry."""
    with ExitStack() as stack:
        servers = {
            f"g{number}": stack.enter_context(Server(partial(tokens_by_another_clock, key, ahead), ahead))
            for number, (key, ahead) in enumerate(itertools.product(("access_token", "expires_at"), (-299, 600)))
        }
        for name, server in servers.items():
            refresher.import_grant(name, server.fields())
        assert refresher("run-once").code == 0
        for name in servers:
            token = refresher.token(name)
            assert token.expires_at is not None
            assert abs(token.expires_at - token.issued_at - 300) < 30
        results = refresher("run-once", "--json").results.values()
        assert {result["outcome"] for result in results} == {"not_due"}
        assert {server.request_count for server in servers.values()} == {1}
