"""Kill a command before each of its system calls, one after the other."""

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.command import Command, wait_until

__all__ = ["CHANGES", "EVERYTHING", "Point", "attached", "child", "sweep", "sweep_of"]

CHANGES: Final = ("pwrite64", "fsync", "rename", "unlink")
"""What changes a directory of grants, or proves that it has changed."""

EVERYTHING: Final = (
    *CHANGES,
    "fchmod",
    "ftruncate",
    "utimensat",
    "mkdir",
    "flock",
    "socket",
    "connect",
    "sendto",
    "recvfrom",
)
"""All that a rotation asks of the kernel and that anybody could see; files are opened and closed besides."""

_STARTED: Final = re.compile(r"(\d+) +(\w+)\(")
_KILLED: Final = (-9, 137)
_MOSTLY: Final = 0.1
"""The share of points that a sweep may miss."""


class Point(NamedTuple):
    """The instant before a system call: the ``number``-th of its kind in its thread."""

    call: str
    number: int


def sweep(
    refresher: Command,
    prepare: Callable[[], object],
    arguments: Sequence[str],
    *,
    calls: Sequence[str] = EVERYTHING,
    places: Sequence[Path] = (),
    fault: str | None = None,
    killed: Sequence[str] | None = None,
) -> Iterator[Point]:
    """Kill ``refresher ARGUMENTS`` at each point of its way, each time after ``prepare``; yield after each kill.

    ``places``: only calls that touch one of these paths count. ``fault``: what strace injects besides. ``killed``: the
    command to kill, where it is another one that goes the same way.
    """

    def run(tracing: Sequence[str]) -> int:
        prepare()
        going = killed if killed and _kills(tracing) else arguments
        # From its first own line on: the interpreter has started already, and its calls need not be traced.
        process = refresher.start(*going, stopped=True)
        with attached(process, calls, tracing, places=places, fault=fault):
            process.send_signal(signal.SIGCONT)
            return refresher.finish(process).code

    return sweep_of(refresher.home / "trace", run)


def sweep_of(trace: Path, run: Callable[[Sequence[str]], int]) -> Iterator[Point]:
    """Kill what ``run`` does under strace with the given options at each point of its way; yield after each kill.

    ``run`` returns its exit code.
    """
    # Without the strings, which hold secrets.
    run(("-s", "0", "-o", str(trace)))
    points = _points(trace)
    assert points, "it asks nothing of the kernel"
    missed = []
    for point in points:
        code = run(("-o", "/dev/null", "-e", f"inject={point.call}:signal=KILL:when={point.number}"))
        # Some calls depend on chance, such as how many pieces an answer comes in: then there is nothing to kill there.
        if code in _KILLED:
            yield point
        else:
            missed.append((point, code))
    assert len(missed) <= _MOSTLY * len(points), f"it came past {missed}"


def _kills(tracing: Sequence[str]) -> bool:
    return any("signal=KILL" in option for option in tracing)


def attached(
    process: subprocess.Popen[str],
    calls: Sequence[str],
    tracing: Sequence[str],
    *,
    places: Sequence[Path] = (),
    fault: str | None = None,
) -> subprocess.Popen[bytes]:
    """Have strace trace all threads of a process that runs already; it ends with it."""
    command = [*_strace(calls, places, fault, *tracing), "-p", str(process.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    threads = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: all(_is_traced(thread) for thread in threads.iterdir()), "strace has attached")
    return tracer


def child(tracer: subprocess.Popen[str]) -> int:
    """Return the process that strace has started."""
    return int(Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()[0])


def _is_traced(thread: Path) -> bool:
    return "TracerPid:\t0\n" not in (thread / "status").read_text()


def _strace(calls: Sequence[str], places: Sequence[Path], fault: str | None, *more: str) -> tuple[str, ...]:
    within = [option for place in places for option in ("-P", str(place))]
    injected = () if fault is None else ("-e", f"inject={fault}")
    return ("strace", "-f", "-qq", "-e", f"trace={','.join(calls)}", *within, *injected, *more)


def _points(trace: Path) -> list[Point]:
    """Return the points of a recorded way, in the order in which they are reached."""
    seen: Counter[tuple[str, str]] = Counter()
    points: dict[Point, None] = {}
    for line in trace.read_text().splitlines():
        if match := _STARTED.match(line):
            seen[match[1], match[2]] += 1
            points[Point(match[2], seen[match[1], match[2]])] = None
    trace.unlink()
    return list(points)
