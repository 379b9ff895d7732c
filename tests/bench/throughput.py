"""How many rotations a second, among many grants that are due?"""

import json
import sys
import time
from typing import Final

from tests.bench.homes import Home, new_grants
from tests.bench.measuring import Run, cost
from tests.bench.server import Server

__all__ = ["measure"]

_SERVERS: Final = 100
_LIFE: Final = 60.0
_DUE: Final = 0.75
"""The share of its lifetime after which an access token is due."""

_BUCKET: Final = 5.0
"""Seconds in which the rotations of ``run`` are counted."""


def measure(run: Run) -> None:
    """Measure ``run-once --force``, then ``run``."""
    with Server(_SERVERS) as server:
        _forced(run, server)
        _sustained(run, server)


def _forced(run: Run, server: Server) -> None:
    seconds = {}
    for size in (1, run.count(100), run.count(1000) // 3, run.count(1000)):
        run.say(f"run-once --force of {size:,} grants")
        home = Home(run.root / f"forced-{size}", new_grants(size, endpoint=server.endpoint))
        bare = _post(server, size)
        seconds[size] = home.refresher("run-once", "--force").wall
        run.point("run-once --force", size, [(seconds[size], (bare + _post(server, size)) / 2)])
    one, _, third, most = seconds
    each = [1000 * (seconds[size] - seconds[one]) / (size - one) for size in (most, third)]
    run.note("throughput.linear", [(each[0], each[1])])
    bare = run.results.curves["run-once --force"][most].peer[0]
    run.note("throughput.forced", [(most / seconds[most], most / bare)])


def _sustained(run: Run, server: Server) -> None:
    """Let more grants become due than ``run`` can rotate, and count its requests."""
    size, before = run.count(10_000), len(server.log())
    bare = run.count(1000) / _post(server, run.count(1000))
    run.say(f"run with {size:,} grants of which some are always due, for {run.minutes:g} minutes")
    grants = new_grants(
        size,
        endpoint=server.endpoint,
        life=lambda _: _LIFE,
        age=lambda number: _LIFE * _DUE * number / size,
    )
    home = Home(run.root / "sustained", grants)
    with home.daemon():
        began = time.time()
        time.sleep(60 * run.minutes)
    ended = began + 60 * run.minutes
    came = [each.came for each in server.log()[before:] if began <= each.came < ended]
    buckets = [0] * max(int((ended - began) / _BUCKET), 1)
    for each in came:
        buckets[min(int((each - began) / _BUCKET), len(buckets) - 1)] += 1
    bare = (bare + run.count(1000) / _post(server, run.count(1000))) / 2
    run.note("throughput.sustained", [(count / _BUCKET, bare) for count in buckets])


def _post(server: Server, count: int) -> float:
    """Return the seconds of as many token requests with httpx alone."""
    requests = [(server.endpoint(number), f"bare/{_LIFE:g}", 0) for number in range(count)]
    done = cost(sys.executable, "-m", "tests.bench.bare_posts", stdin=json.dumps(requests))
    return float(done.output.split()[0])
