"""The file ``last-run``: when refresher last looked at the grants, and for how long that is recent enough.

Its modification time is the time of the run. It is never synced: after a power loss the next run writes it again.
"""

import os
from contextlib import suppress
from typing import Final

from refresher.storage import files
from refresher.storage.directories import Directories

__all__ = ["RUN_LIMIT", "at", "is_overdue", "note"]

RUN_LIMIT: Final = 120.0
"""Seconds after which ``run``, which notes itself each minute, is not running any more."""

_LARGEST: Final = 32


def note(directories: Directories, limit: float) -> None:
    """Note a run, after which another is expected within ``limit`` seconds; 0: at an unknown time. Never raises."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        descriptor = os.open(directories.last_run, flags, 0o600)
        try:
            line = b"%d\n" % limit
            files.write_all(descriptor, line)
            os.ftruncate(descriptor, len(line))
        finally:
            os.close(descriptor)


def at(directories: Directories) -> float | None:
    """Return the epoch second of the last run; ``None`` if there was none."""
    try:
        return directories.last_run.lstat().st_mtime
    except OSError:
        return None


def is_overdue(directories: Directories, now: float) -> bool | None:
    """Whether the next run should have come before ``now``; ``None`` if nobody knows when it comes."""
    try:
        found = files.read(directories.last_run, _LARGEST)
        limit = 0 if found is None else int(found.data)
    except (OSError, ValueError):
        return None
    return now - found.status.st_mtime > limit if found is not None and limit > 0 else None
