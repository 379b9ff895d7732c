"""What do commands cost among 10 to 100,000 grants of which none is due?"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.bench.homes import Home, shared
from tests.bench.measuring import Run, bare_cpu, cost, cpu_of, memory_of, pairs

__all__ = ["measure"]

_SETTLED: Final = 3.0
"""Seconds after which a daemon that is ready does nothing more."""

_IDLE: Final = 5.0
"""Seconds in which it is watched."""

_READ: Final = """
import os, sys
for directory in sys.argv[1:]:
    for entry in os.scandir(directory):
        if entry.name.endswith(".json"):
            with open(entry.path, "rb") as file:
                file.read()
"""

_LOOK: Final = """
import os, sys, time
while True:
    for directory in sys.argv[1:]:
        os.stat(directory)
    time.sleep(0.2)
"""

_Pairs = list[tuple[float, float]]


def measure(run: Run) -> None:
    """Measure each command among each number of grants."""
    rows = {
        1: {"run-once": "grants.run_once_1"},
        run.count(10_000): {
            "run-once": "grants.run_once",
            "status": "grants.status",
            "start-up": "grants.ready",
            "idle": "grants.idle",
            "memory": "grants.memory",
        },
        run.count(100_000): {
            "start-up": "grants.ready_all",
            "idle": "grants.idle_all",
            "memory": "grants.memory_all",
        },
    }
    for size in run.sizes:
        home = shared(run, size)
        rounds = 1 if size > 10_000 else 3 if size > 1000 or run.quick else 5
        run.say(f"run-once, status and run among {size:,} grants")
        home.refresher("run-once", "--horizon", "70")  # what the first run of all does is not measured
        measured = {
            "run-once": _cpu(home, rounds, 1000, "run-once", "--horizon", "70"),
            "status": _cpu(home, rounds, 1, "status"),
            **_run(home, 1 if run.quick else min(rounds, 3), idle="idle" in rows.get(size, {})),
        }
        for curve, figure in measured.items():
            run.point(curve, size, figure)
            if (key := rows.get(size, {}).get(curve)) is not None:
                run.note(key, figure)
    run.note("grants.token", _token(shared(run, 1)))


def _cpu(home: Home, rounds: int, scale: float, *arguments: str) -> _Pairs:
    """Measure the processor time of a command, beside an interpreter that does nothing."""
    return pairs(
        rounds,
        lambda: scale * home.refresher(*arguments).cpu,
        lambda: scale * sum(bare_cpu() for _ in range(3)) / 3,
    )


def _token(home: Home) -> _Pairs:
    """Measure the processor time of ``token``, beside ``run-once``."""
    return pairs(
        5,
        lambda: 1000 * home.refresher("token", "grant-0").cpu,
        lambda: 1000 * home.refresher("run-once", "--horizon", "70").cpu,
    )


def _run(home: Home, rounds: int, *, idle: bool) -> dict[str, _Pairs]:
    """Measure the start of the daemon, its memory, and what it uses while nothing happens."""
    directories = [str(home.directories.grants), str(home.directories.tokens)]
    start_up: _Pairs = []
    shares: _Pairs = []
    for number in range(rounds):
        floor = cost(sys.executable, "-c", _READ, *directories).wall
        with home.daemon() as daemon:
            start_up.append((daemon.ready, floor))
            if number == rounds - 1:
                with _looking(*directories) as bare:
                    time.sleep(_SETTLED)
                    memory = [(memory_of(daemon.pid), memory_of(bare))]
                    if idle:
                        before = cpu_of(daemon.pid), cpu_of(bare)
                        time.sleep(_IDLE)
                        after = cpu_of(daemon.pid), cpu_of(bare)
                        shares = [(100 * (after[0] - before[0]) / _IDLE, 100 * (after[1] - before[1]) / _IDLE)]
    return {"start-up": start_up, "memory": memory} | ({"idle": shares} if idle else {})


@contextmanager
def _looking(*directories: str) -> Iterator[int]:
    """Run the counterpart of an idle daemon: a bare interpreter that looks at the directories five times a second."""
    process = subprocess.Popen([sys.executable, "-c", _LOOK, *directories])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
