"""Kill a command before each of its system calls that change something, one after the other."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.command import Command, wait_until

__all__ = ["CHANGES", "NETWORK", "Point", "attached", "sweep", "sweep_of"]

CHANGES: Final = ("openat", "pwrite64", "ftruncate", "rename", "renameat", "unlink", "unlinkat", "linkat", "mkdir")
"""System calls that change files. A kill before another call leaves the same files as a kill before the next of these."""

NETWORK: Final = ("connect", "sendto", "recvfrom")

_CALL: Final = re.compile(
    r'(?P<thread>\d+) +(?P<call>\w+)\((?:\d+<(?P<open>/[^>]*)>|[^"]*"(?P<path>/[^"]*)")?(?P<more>.*)'
)
_FAILED: Final = re.compile(r"\) += -1 E(?!INPROGRESS)")
_CHANGES_EACH_TIME: Final = re.compile(r"[0-9a-f]{32}|\.\d{9,}")
_VARIES: Final = "recvfrom"
"""The kernel may return an answer in one piece or in several."""
_KILLED: Final = (-9, 137)


class Point(NamedTuple):
    """The moment before a system call: the ``number``-th of its kind in its thread, on ``path`` if it is known."""

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
    """Kill ``refresher ARGUMENTS`` at each point of its run, each time after ``prepare``; yield after each kill.

    ``fault``: a fault that strace injects as well. ``killed``: another command with the same steps, which is killed.
    """

    def run(tracing: Sequence[str]) -> int:
        prepare()
        command = killed if killed and "/dev/null" in tracing else arguments
        # Without a history, whose thread makes system calls at any time; tests/unit/observers kill one.
        without = {"REFRESHER_HISTORY_DAYS": "0"}
        return refresher(*command, environment=without, prefix=_strace(calls, *tracing, *_injected(fault))).code

    return sweep_of(refresher.home / "trace", run, by_path=fault is None)


def sweep_of(trace: Path, run: Callable[[Sequence[str]], int], *, by_path: bool = True) -> Iterator[Point]:
    """Kill the command that ``run`` starts under strace, at each point; yield after each kill.

    ``run`` gets options of strace and returns the exit code. ``by_path``: false if the options have a fault, because a
    path would restrict the fault as well.
    """
    # Without strings, which may be secrets.
    run(("-y", "-s", "0", "-o", str(trace)))
    points = _points(trace.read_text(), by_path=by_path)
    trace.unlink()
    assert points, "the command changes nothing"
    for point in points:
        code = run(point.kill())
        if code in _KILLED:
            yield point
        else:
            assert point.call == _VARIES, f"the command was not killed at {point} and ended with {code}"


def attached(process: subprocess.Popen[str], calls: Sequence[str], tracing: Sequence[str]) -> subprocess.Popen[bytes]:
    """Attach strace to all threads of a running process; strace ends with the process."""
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
    """Return the points of a trace, in order."""
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
