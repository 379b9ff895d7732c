"""The kernel's lock on one file. No process takes it over because it is old, and its file is never removed."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import filelock

from refresher.common.errors import Interrupted, LockBusy, StorageError
from refresher.storage.store import WAIT

__all__ = ["find_problem", "held"]

_WHAT_TO_DO: Final = {
    errno.ELOOP: "it is a symbolic link; remove it",
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        "this file system has no locks (flock); put --state-dir on one that has them",
    ),
}

log = logging.getLogger(__name__)


def find_problem(path: Path) -> str | None:
    """Return why the lock file at ``path`` cannot be locked; ``None`` if it can, or if it does not exist yet.

    It creates nothing, and does not wait for a holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, BlockingIOError):
        return None
    except OSError as error:
        return _problem(path, error)
    return None


@contextmanager
def held(path: Path, *, stopping: Callable[[], bool], wait: float = WAIT) -> Iterator[None]:
    """Hold the lock at ``path``.

    Raises ``LockBusy`` after ``wait`` seconds, ``Interrupted`` if ``stopping()`` becomes true before that, and
    ``StorageError`` if the file system has no locks.
    """
    # A new instance each time: one instance is reentrant and would let two tasks in.
    lock = filelock.FileLock(path, mode=0o600, fallback_to_soft=False, thread_local=False)
    try:
        lock.acquire(timeout=wait, cancel_check=stopping)
    except filelock.Timeout:
        if stopping():
            raise Interrupted("interrupted while waiting for a lock; nothing was changed") from None
        raise LockBusy(f"another process has held {path} for {wait:.0f} s: find it with 'fuser {path}'") from None
    except OSError as error:
        raise StorageError(_problem(path, error)) from None
    try:
        yield
    finally:
        try:
            lock.release()
        except OSError as error:
            # The work under the lock is done, and the kernel releases it with this process at the latest.
            log.warning("cannot unlock %s: %s", path, error.strerror or error)
            with suppress(OSError):
                lock.release(force=True)


def _problem(path: Path, error: OSError) -> str:
    return f"cannot lock {path}: {_WHAT_TO_DO.get(error.errno or 0, error.strerror or error)}"
