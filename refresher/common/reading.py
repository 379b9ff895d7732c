"""Read files that somebody else may have made: regular files only, bounded in size; named ones also in time."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

__all__ = [
    "LARGEST",
    "FileWithStatus",
    "inspect_named",
    "is_exposed",
    "list_named",
    "read_ahead",
    "read_named",
    "read_regular",
    "run_all",
]

LARGEST: Final = 8 * 1024 * 1024
"""Bytes of a file that a person names. A bundle of all public CAs has less than 1 MiB."""


_T = TypeVar("_T")

_WAIT: Final = 5.0
"""Seconds for a file system to answer. It is shorter than an exchange and than the grace period of a stop."""

_PIECE: Final = 64 * 1024
_TO_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileWithStatus(NamedTuple):
    """The bytes of a file, and its ``fstat`` when they were read."""

    data: bytes
    status: os.stat_result


def is_exposed(status: os.stat_result) -> bool:
    """Whether users who need not could read or change a private file.

    A mounted secret belongs to root, and the group of the container reads it.
    """
    return bool(status.st_mode & (0o077 if status.st_uid == os.geteuid() else 0o037))


def read_regular(
    path: str | os.PathLike[str], largest: int, *, flags: int = 0, directory: int | None = None
) -> FileWithStatus:
    """Read a regular file of at most ``largest`` bytes; ``flags`` are more flags of ``open``.

    ``directory``: the open directory that a relative ``path`` begins at, else the current one.
    Raises ``OSError``, and ``ValueError`` for anything else. It does not block on a FIFO or a device.
    """
    descriptor = os.open(path, _TO_READ | flags, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        data = os.read(descriptor, min(status.st_size, largest) + 1)
        # One read is enough for nearly every file; a file that has grown meanwhile takes more.
        while len(data) != status.st_size and (more := os.read(descriptor, min(_PIECE, largest + 1 - len(data)))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest} bytes")
    return FileWithStatus(data, status)


def read_named(path: str | os.PathLike[str], largest: int = LARGEST) -> FileWithStatus:
    """Read a file that a person named, or return what ``read_ahead`` found there. It follows links.

    Raises ``OSError`` whose ``strerror`` says in plain words why the file cannot be used: also for anything but a
    regular file, for one that is too large, and for a file system that does not answer.
    """
    path = os.fspath(path)
    found = _found.get().get(path)
    if found is None:
        read: FileWithStatus = _started(("read", path), partial(_read, path, largest)).wait(time.monotonic() + _WAIT)
        return read
    if isinstance(found, OSError):
        raise OSError(found.errno, found.strerror, path)
    if len(found.data) > largest:
        raise OSError(errno.EINVAL, _too_large(largest), path)
    return found


@contextmanager
def read_ahead(paths: Iterable[str]) -> Iterator[None]:
    """Read files now, all at once; inside, ``read_named`` returns what was found and does not wait for a disk.

    A file that cannot be read raises its error there, and not here.
    """
    token = _found.set(_all("read", {path: partial(_read, path, LARGEST) for path in paths}))
    try:
        yield
    finally:
        _found.reset(token)


def list_named(path: str | os.PathLike[str]) -> dict[str, int]:
    """Return the names in a directory that a person named, each with its mode; 0 for a dangling link.

    Raises ``OSError`` as ``read_named`` does; ``NotADirectoryError`` if it is no directory.
    """
    path = os.fspath(path)
    entries: dict[str, int] = _started(("list", path), partial(_list, path)).wait(time.monotonic() + _WAIT)
    return entries


def inspect_named(path: str, look: Callable[[], _T]) -> _T:
    """Return what ``look`` finds at a path that a person named. Raises ``OSError`` as ``read_named`` does."""
    found: _T = _started(("inspect", path), look).wait(time.monotonic() + _WAIT)
    return found


def run_all(calls: Mapping[str, Callable[[], _T]]) -> dict[str, _T | OSError]:
    """Run calls that may hang, all at once; return for each what it returns, or the error as ``read_named`` raises it.

    A call of the same key that still hangs is not started again.
    """
    return _all("run", calls)


def _all(kind: str, calls: Mapping[str, Callable[[], _T]]) -> dict[str, _T | OSError]:
    ends = time.monotonic() + _WAIT
    found: dict[str, _T | OSError] = {}
    started: dict[str, _Call] = {}
    for key, call in calls.items():
        try:
            started[key] = _started((kind, key), call)
        except OSError as error:
            found[key] = error
    for key, running in started.items():
        try:
            found[key] = running.wait(ends)
        except OSError as error:
            found[key] = error
    return found


_found: ContextVar[dict[str, FileWithStatus | OSError]] = ContextVar("found", default={})  # noqa: B039  never changed
_calls: "dict[tuple[str, str], _Call]" = {}
_calls_lock: Final = threading.Lock()


class _Call(threading.Thread):
    """A thread that may hang in a file system: no signal and no flag of ``open`` ends a call to a dead mount."""

    def __init__(self, path: str, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True, name="file reader")
        self._path = path
        self._work = work
        self._overdue = False
        self._result: Any = None
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except OSError as error:
            self._error = error
        except ValueError as error:
            # Python itself rejects a path with a zero byte.
            self._error = OSError(errno.EINVAL, "not a path" if "\0" in self._path else str(error))
        except MemoryError:
            self._error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def wait(self, ends: float) -> Any:
        """Return the result, at ``ends`` (monotonic seconds) at the latest. Raises ``OSError``."""
        # A file system that did not answer in time is not waited for again.
        self.join(0 if self._overdue else max(ends - time.monotonic(), 0))
        if self.is_alive():
            self._overdue = True
            raise OSError(errno.ETIMEDOUT, "its file system does not answer; check its mount", self._path)
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, self._path)
        return self._result


def _started(key: tuple[str, str], work: Callable[[], Any]) -> _Call:
    """Return the call for ``key`` that still hangs, else a new one: a dead mount holds one thread for each path."""
    with _calls_lock:
        for ended in [other for other, call in _calls.items() if not call.is_alive()]:
            del _calls[ended]
        if (call := _calls.get(key)) is None:
            call = _Call(key[1], work)
            try:
                call.start()
            except RuntimeError:
                raise OSError(errno.EAGAIN, "the system has no thread left", key[1]) from None
            _calls[key] = call
        return call


def _read(path: str, largest: int) -> FileWithStatus:
    # Before the open, which some devices take as an order and a socket refuses in other words.
    status = os.stat(path)  # noqa: PTH116  the result is what counts
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:  # noqa: PTH116
        return FileWithStatus(b"", status)  # --config /dev/null
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file; give the path of one")
    if status.st_size > largest:
        raise ValueError(_too_large(largest))
    return read_regular(path, largest)  # it checks what it has opened


def _too_large(largest: int) -> str:
    return f"it is larger than {largest} bytes; is it the right file?"


def _list(path: str) -> dict[str, int]:
    def mode(entry: os.DirEntry[str]) -> int:
        try:
            return entry.stat().st_mode
        except OSError:
            return 0

    with os.scandir(path) as entries:
        return {entry.name: mode(entry) for entry in entries}
