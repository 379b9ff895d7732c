"""Kill a command before each of its system calls that matter, one after the other."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.command import Command, wait_until

__all__ = ["CHANGES", "NETWORK", "Point", "attached", "sweep", "sweep_of"]

CHANGES: Final = ("openat", "pwrite64", "ftruncate", "rename", "unlink", "linkat", "mkdir")
"""What changes files. A kill before any other call leaves the same files as a kill before the next one of these."""

NETWORK: Final = ("connect", "sendto", "recvfrom")

_CALL: Final = re.compile(
    r'(?P<thread>\d+) +(?P<call>\w+)\((?:\d+<(?P<open>/[^>]*)>|[^"]*"(?P<path>/[^"]*)")?(?P<more>.*)'
)
_FAILED: Final = re.compile(r"\) += -1 E(?!INPROGRESS)")
_CHANGES_EACH_TIME: Final = re.compile(r"[0-9a-f]{32}|\.\d{9,}")
_VARIES: Final = "recvfrom"
"""The kernel may hand over an answer in one piece or in several."""
_KILLED: Final = (-9, 137)


class Point(NamedTuple):
    """The instant before a system call: the ``number``-th of its kind in its thread, on ``path`` where that is known."""

    call: str
    number: int
    path: str | None = None

    def kill(self) -> tuple[str, ...]:
        """Return the options of strace that kill at this point."""
        within = () if self.path is None else ("-P", self.path)
        return ("-o", "/dev/null", *within, "-e", f"inject={self.call}:signal=KILL:when={self.number}")


def sweep(
    refresher: Command,
    prepare: Callable[[], object],
    arguments: Sequence[str],
    *,
    calls: Sequence[str] = (*CHANGES, *NETWORK),
    fault: str | None = None,
    killed: Sequence[str] | None = None,
) -> Iterator[Point]:
    """Kill ``refresher ARGUMENTS`` at each point of its way, each time after ``prepare``; yield after each kill.

    ``fault``: what strace injects besides. ``killed``: the command to kill, where another one goes the same way.
    """

    def run(tracing: Sequence[str]) -> int:
        prepare()
        command = killed if killed and "/dev/null" in tracing else arguments
        return refresher(*command, prefix=_strace(calls, *tracing, *_injected(fault))).code

    return sweep_of(refresher.home / "trace", run, by_path=fault is None)


def sweep_of(trace: Path, run: Callable[[Sequence[str]], int], *, by_path: bool = True) -> Iterator[Point]:
    """Kill what ``run`` does under strace with the given options at each point of its way; yield after each kill.

    ``run`` returns its exit code. ``by_path``: false where the options hold a fault, which a path would restrict as well.
    """
    # Without the strings, which hold secrets.
    run(("-y", "-s", "0", "-o", str(trace)))
    points = _points(trace.read_text(), by_path=by_path)
    trace.unlink()
    assert points, "it changes nothing"
    for point in points:
        code = run(point.kill())
        if code in _KILLED:
            yield point
        else:
            assert point.call == _VARIES, f"it came past {point} and ended with {code}"


def attached(process: subprocess.Popen[str], calls: Sequence[str], tracing: Sequence[str]) -> subprocess.Popen[bytes]:
    """Have strace trace all threads of a process that runs already; it ends with it."""
    tracer = subprocess.Popen([*_strace(calls, *tracing), "-p", str(process.pid)], stderr=subprocess.PIPE)
    threads = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: all(_is_traced(thread) for thread in threads.iterdir()), "strace has attached")
    return tracer


def _is_traced(thread: Path) -> bool:
    return "TracerPid:\t0\n" not in (thread / "status").read_text()


def _strace(calls: Sequence[str], *more: str) -> tuple[str, ...]:
    return ("strace", "-f", "-qq", "-e", f"trace={','.join(calls)}", *more)


def _injected(fault: str | None) -> tuple[str, ...]:
    return () if fault is None else ("-e", f"inject={fault}")


def _points(trace: str, *, by_path: bool) -> list[Point]:
    """Return the points of a recorded way, in the order in which they are reached."""
    seen: Counter[tuple[str, ...]] = Counter()
    points: dict[Point, None] = {}
    for found in filter(None, map(_CALL.match, trace.splitlines())):
        thread, call, path, more = found["thread"], found["call"], found["open"] or found["path"], found["more"]
        seen[thread, call] += 1
        seen[thread, call, path or ""] += 1
        if _FAILED.search(more) or (call == "openat" and "O_CREAT" not in more):
            continue  # it changes nothing
        if by_path and path is not None and not _CHANGES_EACH_TIME.search(path):
            points[Point(call, seen[thread, call, path], path)] = None
        else:
            points[Point(call, seen[thread, call])] = None
    return list(points)
