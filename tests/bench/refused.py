"""What does one refused or expired token cost, if many callers have it at the same time?

Each measurement has a grant of its own, because refresher waits before it rotates a grant that is demanded again.
"""

import json
import sys
import threading
from collections import Counter
from typing import Final

from tests.bench.homes import LIFE, Home, new_grants
from tests.bench.measuring import Run, cost
from tests.bench.server import Server

__all__ = ["measure"]

_PROCESSES: Final = 64
_HEAD_START: Final = 3.0
"""Seconds for the processes to begin before ``run``."""


def measure(run: Run) -> None:
    """Measure callers in one process, then callers in many processes."""
    with Server() as server:
        _measure_callers(run, server)
        _measure_processes(run, server)


def _measure_callers(run: Run, server: Server) -> None:
    count, rounds = run.count(10_000), _rounds(run)
    run.say(f"{count:,} callers with one refused token")
    home = Home(run.root / "refused")
    for prefix in ("plain", "single", "many"):
        home.add(new_grants(rounds, prefix=prefix, endpoint=server.endpoint, origin=server.origin))
    for number in range(rounds):
        server.refuse(f"access-token-of-single-{number}")
        server.refuse(f"access-token-of-many-{number}")
    wall, calls = [], []
    with home.daemon():
        for number in range(rounds):
            plain, _ = _call(home, server, f"plain-{number}", calls=count)
            single, _ = _call(home, server, f"single-{number}", calls=1)
            many, succeeded = _call(home, server, f"many-{number}", calls=count)
            wall.append((many, plain + single))
            calls.append((succeeded, float(count)))
    asked = Counter(each.client for each in server.log())
    run.note("refused.wall", wall)
    run.note("refused.calls", calls)
    run.note("refused.exchanges", [(asked[f"many-{number}/{LIFE:g}"], 1) for number in range(rounds)])


def _measure_processes(run: Run, server: Server) -> None:
    """Let the processes find that their token has expired before ``run`` starts: all of them demand a newer one."""
    run.say(f"{_PROCESSES} processes when their token expires")
    exchanges, calls = [], []
    for number in range(_rounds(run)):
        prefix = f"expired-{number}"
        grants = new_grants(1, prefix=prefix, endpoint=server.endpoint, origin=server.origin, age=lambda _: LIFE + 1)
        home = Home(run.root / prefix, grants)
        server.refuse(f"access-token-of-{prefix}-0")
        succeeded: list[float] = []
        thread = threading.Thread(
            target=lambda: succeeded.append(_call(home, server, f"{prefix}-0", calls=1, processes=_PROCESSES)[1])  # noqa: B023
        )
        thread.start()
        thread.join(_HEAD_START)
        with home.daemon():
            thread.join()
        exchanges.append((float(sum(each.client.startswith(prefix) for each in server.log())), 1.0))
        calls.append((sum(succeeded), float(_PROCESSES)))
    run.note("refused.expiry", exchanges)
    run.note("refused.expiry_calls", calls)


def _rounds(run: Run) -> int:
    return 1 if run.quick else 2


def _call(home: Home, server: Server, name: str, *, calls: int, processes: int = 1) -> tuple[float, float]:
    """Make calls with the token of ``name``; return the seconds, and how many succeeded."""
    plan = {
        "url": server.origin,
        "name": name if not name.startswith("plain") else None,
        "tokens": str(home.directories.tokens),
        "demands": str(home.directories.demands),
        "calls": calls,
        "processes": processes,
    }
    seconds, succeeded = cost(sys.executable, "-m", "tests.bench.callers", json.dumps(plan)).output.split()
    return float(seconds), float(succeeded)
