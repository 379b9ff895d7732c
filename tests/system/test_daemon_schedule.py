"""The daemon rotates on time, beside hanging servers, locked grants, demands and other processes."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import httpx
import pytest

from refresher.grants import policy
from refresher.storage import lock
from shim import FileTokenSource
from shim.httpx import BearerAuth
from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.daemon import published, stopped
from tests.support.oidc import OIDC
from tests.support.samples import grant as sample
from tests.support.token_server import Gate, TokenServer

Daemon = Callable[..., subprocess.Popen[str]]

LIFE = 16
"""Seconds until a token expires; a rotation is due four seconds before that."""

# Measures how late the machine wakes a process that does nothing but wake up at given times, until its stdin ends.
PEER = """
import sys, threading, time
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
worst, at = 0.0, time.monotonic()
while not ended.is_set():
    at = max(at + 0.02, time.monotonic())
    time.sleep(max(at - time.monotonic(), 0))
    worst = max(worst, time.monotonic() - at)
print(worst)
"""


@pytest.mark.alone
def test_two_hundred_grants_rotate_before_they_expire_while_one_server_hangs(
    refresher: Command, daemon: Daemon
) -> None:
    """If it failed, tokens would expire because there are many grants, or because another server is down."""
    gate = Gate()

    def life(client: str) -> float:
        return 8.0 + int(client) % 9

    with (
        TokenServer(life, hold=gate) as hanging,
        # Several servers, because each has a rate limit.
        TokenServer(life) as one,
        TokenServer(life) as two,
        TokenServer(life) as three,
        TokenServer(life) as four,
    ):
        good = (one, two, three, four)
        for number in range(200):
            server = hanging if number % 10 == 0 else good[number % 4]
            refresher.bring(f"g{number}", server.grant(str(number)))

        def requests() -> dict[str, list[float]]:
            return {client: list(times) for server in good for client, times in server.asked.copy().items()}

        def all_rotated() -> bool:
            asked = requests()
            return len(asked) == 180 and all(len(times) >= 2 for times in asked.values())

        peer = subprocess.Popen([sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process = daemon()
        wait_until(all_rotated, "every grant has rotated twice", 120.0)
        asked = requests()
        lateness, _ = peer.communicate(timeout=90)
        assert gate.reached.is_set()
        gate.opened.set()
        stopped(refresher, process)
    rotations = [(client, pair) for client, times in asked.items() for pair in itertools.pairwise(times)]
    # The tokens of grants with the shortest life expire two seconds after their rotation is due.
    assert max(after - before - life(client) for client, (before, after) in rotations) < float(lateness)
    assert min((after - before) / life(client) for client, (before, after) in rotations) > 0.5, "a rotation was early"
    assert [server.reused for server in good] == [0] * 4


def test_after_a_503_a_demanded_rotation_is_retried_within_seconds(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, an agent would give up while refresher waits fifteen seconds before the retry."""
    server = own_oidc()
    # The backoff depends on the name: the first one of this name is among the longest.
    names = (f"n{number}" for number in itertools.count())
    name = next(each for each in names if policy.backoff(sample(name=each, generation=1), 1) > 14.8)
    with API(lambda token, _: token is not None and token != first) as api:
        refresher.bring(name, server.mint() | {"server_url": api.origin})
        daemon()
        wait_until(lambda: published(refresher, name) == 1, "the first token is there")
        first = refresher.token(name).access_token
        server.script(status=503)
        directories = {"tokens_dir": refresher.state / "tokens", "demands_dir": refresher.state / "demands"}
        with httpx.Client(auth=BearerAuth(FileTokenSource(name, **directories)), timeout=60) as client:
            assert client.get(api.origin).status_code == 200
    assert published(refresher, name) == 2


def test_a_flood_of_outdated_demands_does_not_delay_the_schedule(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, one agent with a bug would let the tokens of all agents expire."""
    server = own_oidc(accessTokenTtl=LIFE)
    refresher.import_grant("linear", server.mint("public"))
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    ended = threading.Event()

    def flood() -> None:
        while not ended.wait(0.02):
            (refresher.state / "demands/linear.0").touch()

    threading.Thread(target=flood, daemon=True).start()
    try:
        wait_until(lambda: published(refresher) >= 3, "the schedule is kept")
        check_intervals([request["at"] / 1000 for request in server.requests()])
    finally:
        ended.set()


def check_intervals(rotated: list[float]) -> None:
    """Check that each token was replaced before it expired."""
    assert all(later < earlier + LIFE for earlier, later in itertools.pairwise(rotated)), "a token had expired"


def test_grants_locked_by_other_processes_do_not_delay_the_rest(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a suspended process that holds some locks would let other tokens expire."""
    with TokenServer(lambda _: LIFE) as server, ExitStack() as locks:
        for number in range(12):
            refresher.bring(f"g{number}", server.grant(str(number)))
        for number in range(10):
            path = refresher.state / f"grants/g{number}.lock"
            locks.enter_context(lock.held(path, stopping=lambda: False))
        process = daemon()
        wait_until(lambda: len(server.asked["10"]) >= 3, "the others rotate")
        check_intervals(server.asked["10"])
        assert "0" not in server.asked
        locks.close()
        wait_until(
            lambda: all(str(number) in server.asked for number in range(10)), "they rotate once their locks are free"
        )
        assert "internal error" not in stopped(refresher, process)
        assert server.reused == 0


def test_daemons_and_forced_runs_together_never_send_a_refresh_token_twice(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a second daemon that is started by mistake would destroy every login."""
    server = own_oidc(accessTokenTtl=4)

    def is_valid(name: str) -> bool:
        return bool(server.introspect(refresher.token(name).access_token)["active"])

    for name in ("linear", "notion", "slack"):
        refresher.import_grant(name, server.mint("basic"))
    for _ in range(3):
        daemon()
    for _ in range(5):
        running = [refresher.start("run-once", "--force") for _ in range(3)]
        assert [refresher.finish(process).code for process in running] == [0, 0, 0]
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} <= {200, None}
    for name in ("linear", "notion", "slack"):
        # The token in the file may expire before the server is asked about it; then another one follows.
        wait_until(partial(is_valid, name), "the published token is valid")
