"""How figures are measured: in pairs with a counterpart, in processes of their own, and noted under their rows."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

__all__ = [
    "ROOT",
    "CannotRun",
    "Cost",
    "Figure",
    "Results",
    "Run",
    "bare_cpu",
    "cost",
    "cpu_of",
    "memory_of",
    "pairs",
    "percentile",
    "sized",
]

ROOT: Final = Path(__file__).parent.parent.parent

_CPU_CLOCK: Final = 2
"""With the id of a process, the clock of its processor time (``CPUCLOCK_SCHED``, as in clock_getcpuclockid(3))."""


class CannotRun(Exception):
    """Why a row cannot be measured here."""


class Figure(msgspec.Struct, frozen=True):
    """What was measured, one value for each round, in the unit of the row."""

    refresher: list[float]
    peer: list[float]
    """The counterpart in the same rounds."""


class Results(msgspec.Struct):
    """All that a run has measured; ``curves``: by number of grants."""

    machine: str
    date: str
    load: list[float]
    """The load of the machine before and after (``uptime``)."""
    quick: bool
    seconds: float = 0.0
    figures: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    """Why a row has no figure."""
    curves: dict[str, dict[int, Figure]] = {}
    notes: list[str] = []


class Run:
    """A run of the benchmarks: its sizes, its results, and its progress on stderr."""

    def __init__(self, root: Path, results: Results, *, minutes: float) -> None:
        self.root: Final = root
        self.results: Final = results
        self.minutes: Final = minutes
        self._began = time.monotonic()

    @property
    def quick(self) -> bool:
        return self.results.quick

    def count(self, number: int) -> int:
        """Return a number of grants or callers, or a tenth of it with --quick."""
        return sized(number, quick=self.quick)

    @property
    def sizes(self) -> list[int]:
        """The numbers of grants of the curves."""
        return [number for number in (1, 10, 100, 1000, 10_000, 100_000) if number <= self.count(100_000)]

    def say(self, what: str) -> None:
        """Show what is measured now."""
        print(f"{time.monotonic() - self._began:4.0f} s  {what}", file=sys.stderr, flush=True)

    def note(self, key: str, figure: Sequence[tuple[float, float]]) -> None:
        """Note the rounds of a row: pairs of refresher and its counterpart."""
        self.results.figures[key] = _figure(figure)

    def point(self, curve: str, grants: int, figure: Sequence[tuple[float, float]]) -> None:
        """Note the rounds of a point of a curve."""
        self.results.curves.setdefault(curve, {})[grants] = _figure(figure)


def sized(number: int, *, quick: bool) -> int:
    """Return ``number``, or with --quick a tenth of it."""
    return max(number // 10, 1) if quick else number


def _figure(rounds: Sequence[tuple[float, float]]) -> Figure:
    return Figure([ours for ours, _ in rounds], [peer for _, peer in rounds])


def pairs(rounds: int, ours: Callable[[], float], peer: Callable[[], float]) -> list[tuple[float, float]]:
    """Measure both in turn, so that both run under the same load; the counterpart before and after."""
    measured, before = [], peer()
    for _ in range(rounds):
        value = ours()
        after = peer()
        measured.append((value, (before + after) / 2))
        before = after
    return measured


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many per cent of ``values`` do not exceed."""
    return sorted(values)[max(-(-len(values) * percent // 100), 1) - 1]


class Cost(NamedTuple):
    """What a process took, in seconds, and what it printed."""

    wall: float
    cpu: float
    output: str


def cost(*command: str, stdin: str = "", environment: dict[str, str] | None = None, directory: Path = ROOT) -> Cost:
    """Run a command to its end. Raises ``CannotRun`` if it fails."""
    with ExitStack() as files:
        given, output, errors = (files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=directory, stdin=given, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            last = errors.read().strip().splitlines()[-1:]
            raise CannotRun(f"{shlex.join(command[1:4])} ended with {process.returncode}: {' '.join(last)}")
        return Cost(wall, usage.ru_utime + usage.ru_stime, output.read())


def bare_cpu() -> float:
    """Return the processor seconds of an interpreter that does nothing."""
    return cost(sys.executable, "-c", "pass").cpu


def cpu_of(pid: int) -> float:
    """Return the processor seconds that a running process has used."""
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK)


def memory_of(pid: int | str) -> float:
    """Return the memory of a process in MiB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
