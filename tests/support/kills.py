"""Kill a command before each of its system calls, one after the other."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.command import Command

__all__ = ["CHANGES", "EVERYTHING", "Point", "sweep"]

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
    prepare()
    trace = refresher.home / "trace"
    # Without the strings, which hold secrets.
    process = refresher.start(*arguments, prefix=_strace(calls, places, fault, "-s", "0", "-o", str(trace)))
    refresher.finish(process)
    points = _points(trace)
    assert points, "it asks nothing of the kernel"
    for point in points:
        prepare()
        kill = f"{point.call}:signal=KILL:when={point.number}"
        prefix = _strace(calls, places, fault, "-o", "/dev/null", "-e", f"inject={kill}")
        # One that goes another way is not waited for: it would live on without its tracer.
        process = refresher.start(*killed or arguments, prefix=(*prefix, "timeout", "-s", "KILL", "30"))
        code = refresher.finish(process).code
        assert code in _KILLED, f"{arguments} came past {point} and ended with {code}"
        yield point


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
