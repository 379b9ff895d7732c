"""Clocks that are set, here or at the server: no storm, no token sent too soon, and no wait beyond its own length."""

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
NOTICED = 37.0
GRACE = 3.0


class Server:
    """A token endpoint of one grant; ``mood``: good, busy, or lost (it closes without an answer)."""

    def __init__(self, answer: Callable[[], Mapping[str, Any]], ahead: float = 0.0) -> None:
        self.mood = "good"
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
    def asked(self) -> int:
        """How often it was asked."""
        return len(self._raw.requests)

    def fields(self, **more: Any) -> dict[str, Any]:
        """Return what ``import`` needs."""
        return {
            "token_endpoint": self._raw.token_endpoint,
            "client_id": "client",
            "refresh_token": f"refresh-token-of-{id(self)}",
            "server_url": "https://mcp.example/mcp",
            **more,
        }

    def _answer(self, connection: socket, request: bytes) -> None:
        mood = self.mood
        self.release.wait(60)
        if mood == "lost":
            return
        body = json.dumps(self._tokens() if mood == "good" else {}).encode()
        date = formatdate(time.time() + self._ahead, usegmt=True)
        status = "200 OK" if mood == "good" else "503 Service Unavailable"
        head = f"HTTP/1.1 {status}\r\nDate: {date}\r\n{self.headers}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


def fresh() -> dict[str, Any]:
    """Return a pair of tokens, an hour long."""
    number = time.monotonic_ns()
    return {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": HOUR}


# --- the clock here -----------------------------------------------------------------------------------------------


@contextmanager
def in_every_state(refresher: Command, clock: Clock) -> Iterator[dict[str, Server]]:
    """Have a grant that is well, one that backs off, two in doubt, and one whose server keeps its answer back."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(fresh)) for name in ("well", "busy", "lost", "grace", "held")}
        for name, server in servers.items():
            refresher.import_grant(name, server.fields(replay=f"{GRACE:.0f}s" if name == "grace" else "none"))
        assert refresher("run-once", environment=clock.environment).code == 0
        servers["busy"].headers = "Retry-After: 120\r\n"
        for name in ("busy", "lost", "grace"):
            servers[name].mood = "busy" if name == "busy" else "lost"
        failing = refresher("run-once", "--force", "--json", "busy", "lost", "grace", environment=clock.environment)
        outcomes = {name: result["outcome"] for name, result in failing.results.items()}
        assert outcomes == {"busy": "transient", "lost": "in_doubt", "grace": "in_doubt"}
        for server in servers.values():
            server.mood = "good"
        servers["held"].release.clear()
        yield servers


def check(refresher: Command, clock: Clock, servers: Mapping[str, Server]) -> None:
    """Insist that each was asked as often as it must be, and that what was fetched counts by the clock as it is."""
    # Once each at the beginning, and once to come into its state: a lost answer with a grace is asked for twice.
    expected = {"well": 2, "busy": 2, "lost": 2, "grace": 3, "held": 3}
    assert {name: server.asked for name, server in servers.items()} == expected
    for name in ("well", "held"):
        token = refresher.token(name)
        assert token.state == "active"
        assert token.expires_at == token.issued_at + HOUR
        assert abs(token.issued_at - clock.now()) < 60
    assert {name: refresher.token(name).state for name in ("busy", "lost", "grace")} == dict.fromkeys(
        ("busy", "lost", "grace"), "failing"
    )


def beyond_the_grace(since: float) -> bool:
    """Whether the grace has passed by the clock that nobody sets."""
    return time.monotonic() > since + GRACE


@pytest.mark.parametrize("jump", ["-2h", "-1d", "+1h", "+2h"])
def test_a_daemon_whose_clock_is_set_notices_and_asks_each_server_once_at_most(refresher: Command, jump: str) -> None:
    """If it failed, a laptop that wakes up would use dead tokens, storm a server, or send a spent token again (I1)."""
    need(no_clock())
    clock = Clock(refresher.home)
    demands = refresher.state / "demands"
    with in_every_state(refresher, clock) as servers, running(refresher, environment=clock.environment) as daemon:
        since = time.monotonic()
        (demands / "held.1").touch()
        wait_until(lambda: servers["held"].asked == 2, "an exchange is under way")
        clock.set(jump)
        wait_until(lambda: published(refresher, "well") == 2, f"the jump of {jump} is noticed", NOTICED)
        servers["held"].release.set()
        wait_until(lambda: published(refresher, "held") == 3, "a token of another time is replaced", NOTICED)
        wait_until(partial(beyond_the_grace, since), "the grace is over")
        for name in servers:
            (demands / f"{name}.0").touch()
        wait_until(lambda: not list(demands.iterdir()), "it has looked around since")
        check(refresher, clock, servers)
        said = stopped(refresher, daemon)
        assert "fault" not in said
    assert refresher.leftovers() == []


@pytest.mark.parametrize("jump", ["-2h", "+2h"])
def test_runs_whose_clock_is_set_in_between_ask_each_server_once_at_most(refresher: Command, jump: str) -> None:
    """If it failed, cron would do what a daemon must not (I9)."""
    need(no_clock())
    clock = Clock(refresher.home)
    with in_every_state(refresher, clock) as servers:
        since = time.monotonic()
        process = refresher.start("run-once", "--force", "--json", "held", environment=clock.environment)
        wait_until(lambda: servers["held"].asked == 2, "an exchange is under way")
        clock.set(jump)
        servers["held"].release.set()
        assert refresher.finish(process).outcome == "rotated"
        wait_until(partial(beyond_the_grace, since), "the grace is over")
        outcomes = []
        for options in ([], [], ["--force", "lost", "grace"]):
            done = refresher("run-once", "--json", *options, environment=clock.environment)
            outcomes.append({name: result["outcome"] for name, result in done.results.items()})
        waiting = {"busy": "transient", "lost": "in_doubt", "grace": "in_doubt"}
        assert outcomes == [
            {"well": "rotated", "held": "rotated", **waiting},
            {"well": "not_due", "held": "not_due", **waiting},
            {"lost": "in_doubt", "grace": "in_doubt"},
        ]
        check(refresher, clock, servers)
    assert refresher.leftovers() == []


def test_a_clock_set_back_by_half_an_hour_makes_no_backoff_longer(refresher: Command) -> None:
    """If it failed, a wait of seconds would become one of half an hour, and the token end meanwhile."""
    need(no_clock())
    clock = Clock(refresher.home)
    # Of any name's first backoff, 5 to 15 s, a short one.
    name = next(
        name for name in map("g{}".format, range(1000)) if policy.backoff(grant(name=name, generation=1), 1) < 6
    )
    with Server(fresh) as server:
        refresher.import_grant(name, server.fields())
        assert refresher("run-once", environment=clock.environment).code == 0
        server.mood = "busy"
        assert refresher("run-once", "--force", environment=clock.environment).code == 4
        server.mood = "good"
        clock.set("-30m")
        with running(refresher, environment=clock.environment) as daemon:
            wait_until(lambda: published(refresher, name) == 2, "it is tried again", NOTICED)
            stopped(refresher, daemon)


def test_a_clock_that_jumps_and_a_machine_that_slept_are_noticed(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a laptop that wakes up would use dead tokens, and a clock set back would stop every rotation."""
    need(no_clock())
    clock = Clock(refresher.home)
    server = own_oidc()

    def changed(before: int) -> bool:
        return published(refresher) != before

    refresher.import_grant("linear", server.mint("public"))
    with running(refresher, environment=clock.environment) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        for to in ("+2h", "+0s", "+1d", "-2h"):
            before = published(refresher)
            clock.set(to)
            wait_until(partial(changed, before), f"the jump to {to} is noticed", NOTICED)
        assert published(refresher) == 5
        issued = refresher.token("linear").issued_at
        assert abs(issued + 7200 - time.time()) < 600, "it went by another clock"
        # A demand for an older generation is answered: it has looked around since, and found nothing to do.
        (refresher.state / "demands/linear.1").touch()
        wait_until(lambda: not list((refresher.state / "demands").iterdir()), "it has looked around")
        assert len(server.requests()) == 5, "one jump caused several rotations"
        stopped(refresher, process)
    assert server.log()["reused"] == 0


# --- the clock there ----------------------------------------------------------------------------------------------


def dated(key: str, ahead: float) -> dict[str, Any]:
    """Return a pair of tokens of five minutes, whose end is told by a clock that is ``ahead``."""
    pair, ends = fresh(), int(time.time() + ahead + 300)
    del pair["expires_in"]
    return pair | {key: jwt(exp=ends, iat=ends - 300) if key == "access_token" else ends}


def test_a_server_whose_clock_is_minutes_off_makes_no_storm(refresher: Command) -> None:
    """If it failed, a token of five minutes would be replaced each second, or used ten minutes after its end."""
    with ExitStack() as stack:
        servers = {
            f"g{number}": stack.enter_context(Server(partial(dated, key, ahead), ahead))
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
        assert {server.asked for server in servers.values()} == {1}
