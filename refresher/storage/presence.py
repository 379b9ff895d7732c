"""Whether a ``refresher run`` serves a state directory: it holds a shared lock of the kernel on that directory.

Only messages depend on it. The kernel releases the lock with the process, so it is never out of date.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["Presence", "is_served"]


class Presence:
    """Shows other processes that this one serves a state directory. Any number of processes can serve one."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def show(self, state: Path) -> None:
        """Show that this process serves ``state`` and no other directory; it never waits."""
        self.end()
        # A file system without locks, or another process at this moment: then a message is less precise.
        with suppress(OSError):
            self._descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def end(self) -> None:
        """Serve no directory any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_served(state: Path) -> bool:
    """Whether a process is seen to serve ``state``; one on another machine may not be seen."""
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
