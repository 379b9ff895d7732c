"""A limit on the memory of a process and its children, set by the kernel: a control group of version 1 or 2."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["memory_limited", "no_memory_limit"]

_LINE: Final = re.compile(r"^(?:\S+ ){4}(\S+) .* - (cgroup2?) \S+ (\S+)$", re.MULTILINE)
_ENTER: Final = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


def no_memory_limit() -> str | None:
    """Return why the memory of a process cannot be limited here, ``None`` if it can."""
    if os.geteuid() != 0:
        return "limiting the memory of a process needs root"
    return "there is no control group for memory that can be written" if _group() is None else None


@contextmanager
def memory_limited(most: int) -> Iterator[tuple[str, ...]]:
    """Make a control group that may use ``most`` bytes; yield the command prefix that starts a program in it.

    The kernel kills a process in it that needs more.
    """
    above = _group()
    assert above is not None
    group = above[0] / f"refresher-test-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    try:
        if above[1] == 2:
            (group / "memory.max").write_text(str(most))
            if (swap := group / "memory.swap.max").exists():
                swap.write_text("0")
        else:
            (group / "memory.limit_in_bytes").write_text(str(most))
        yield ("sh", "-c", _ENTER, str(group))
    finally:
        ends = time.monotonic() + 60
        while (group / "cgroup.procs").read_text() and time.monotonic() < ends:
            time.sleep(0.01)  # the kernel empties it after the last process has ended
        group.rmdir()


def _group() -> tuple[Path, int] | None:
    """Return a directory in which memory groups can be made, and the version."""
    for place, kind, options in _LINE.findall(Path("/proc/self/mountinfo").read_text()):
        directory = Path(place)
        if not os.access(directory, os.W_OK):
            continue
        if kind == "cgroup" and "memory" in options.split(","):
            return directory, 1
        control = directory / "cgroup.subtree_control"
        if kind == "cgroup2" and control.exists() and "memory" in control.read_text().split():
            return directory, 2
    return None
