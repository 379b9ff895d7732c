"""The kernel's lock on one file. No process takes it over because it is old, and its file is never removed."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from refresher.common.errors import Interrupted, LockBusy, StorageError

__all__ = ["WAIT", "held"]

WAIT: Final = 30.0
"""Seconds. No exchange takes longer."""

_POLL_INTERVAL: Final = 0.05
_TO_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_WHAT_TO_DO: Final = {
    errno.ELOOP: "it is a symbolic link; remove it",
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        "this file system has no locks (flock); put --state-dir on one that has them",
    ),
}

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path, *, stopping: Callable[[], bool], wait: float = WAIT) -> Iterator[None]:
    """Hold the lock at ``path``, against other processes and other threads.

    Raises ``LockBusy`` after ``wait`` seconds, ``Interrupted`` if ``stopping()`` becomes true before that, and
    ``StorageError`` if the file system has no locks.
    """
    ends = time.monotonic() + wait
    try:
        while (descriptor := _locked(path)) is None:
            if stopping():
                raise Interrupted("interrupted while waiting for a lock; nothing was changed")
            if (remaining := ends - time.monotonic()) <= 0:
                raise LockBusy(f"another process has held {path} for {wait:.0f} s: find it with 'fuser {path}'")
            time.sleep(min(_POLL_INTERVAL, remaining))
    except OSError as error:
        why = _WHAT_TO_DO.get(error.errno or 0, error.strerror or error)
        raise StorageError(f"cannot lock {path}: {why}") from None
    try:
        yield
    finally:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            # The work under the lock is done, and the kernel releases it with the file, or this process at the latest.
            log.warning("cannot unlock %s: %s", path, error.strerror or error)
        with suppress(OSError):
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return a descriptor of the locked file; ``None`` if another holds the lock. Raises ``OSError``."""
    # Each descriptor is a holder of its own: two threads of one process exclude each other too.
    descriptor, is_held = os.open(path, _TO_LOCK, 0o600), False
    try:
        # By file system, flock raises one or the other while another holds the lock.
        with suppress(BlockingIOError, PermissionError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A person may have removed the file: then others lock another one.
            is_held = os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))  # noqa: PTH116
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None
