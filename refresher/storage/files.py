"""Files that are private from their first byte, whole or absent, and durable when they say so."""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "NotPrivate",
    "Seen",
    "create",
    "durable_create",
    "is_there",
    "keep_aside",
    "make_private",
    "read",
    "replace",
    "see",
    "set_aside",
    "sync_directory",
    "write_all",
]

_PIECE: Final = 64 * 1024
_NOT_FOLLOWED: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_TO_READ: Final = os.O_RDONLY | os.O_NONBLOCK | _NOT_FOLLOWED


class Seen(NamedTuple):
    """What a file held, and its ``fstat`` when it was read."""

    data: bytes
    status: os.stat_result


class NotPrivate(ValueError):
    """Others may have read or changed a file that is this user's alone."""


def read(path: Path, largest: int, *, private: bool = False) -> bytes | None:
    """Return a regular file's bytes, ``None`` where there is no file.

    Raises ``OSError``, and ``ValueError`` for what is no regular file or larger than ``largest``: where ``private``,
    also ``NotPrivate``. Never blocks on a FIFO and never follows a link.
    """
    seen = see(path, largest, private=private)
    return None if seen is None else seen.data


def see(path: Path | str, largest: int, *, private: bool = False, at: int | None = None) -> Seen | None:
    """Do as ``read`` does, and tell whose the file is that was read, and for whom.

    ``at``: the descriptor of the directory that a relative path is in.
    """
    try:
        descriptor = os.open(path, _TO_READ, dir_fd=at)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if private:
            _check_private(status)
        data = os.read(descriptor, min(status.st_size, largest) + 1)
        # What is not read at once, as nearly every file is, has grown meanwhile or comes in pieces.
        while len(data) != status.st_size and (more := os.read(descriptor, min(_PIECE, largest + 1 - len(data)))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest} bytes")
    return Seen(data, status)


def _check_private(status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise NotPrivate(f"it belongs to user {status.st_uid}, this is user {os.geteuid()}: chown it, if it is yours")
    if status.st_mode & 0o077:
        raise NotPrivate("others could read or change it: chmod 600 it, if it is as it was")


def is_there(path: Path) -> bool:
    """Whether anything at all is at ``path``, a dangling link included."""
    return os.path.lexists(path)


def set_aside(path: Path, now: float) -> Path:
    """Move a file out of the way, never over another one; return its new path. Raises ``OSError``."""
    return path.rename(_aside(path, now))


def _aside(path: Path, now: float) -> Path:
    count = int(now)
    while is_there(aside := path.with_name(f"{path.name}.aside.{count}")):
        count += 1
    return aside


def keep_aside(path: Path, now: float) -> Path:
    """Have a file under a name of its own too, so that it can be replaced; return that. Raises ``OSError``.

    Whoever is killed before he has replaced it leaves it where it was.
    """
    aside = _aside(path, now)
    try:
        os.link(path, aside, follow_symlinks=False)
    except OSError:
        return path.rename(aside)  # a directory, or a file system that knows no second names
    return aside


def create(path: Path, *, mode: int = 0o600, group: int | None = None) -> int:
    """Create a file that does not exist yet; return its descriptor. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, 0o600)
    try:
        if group is not None:
            os.fchown(descriptor, -1, group)
        # After the group, and whatever the umask took away.
        os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: bytes, offset: int = 0) -> None:
    """Write all of ``data``; the kernel may take less at once. Raises ``OSError``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def durable_create(path: Path, data: bytes) -> None:
    """Create a private file whose bytes are on the disk; its name is, once the directory is synced."""
    descriptor = create(path)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes, *, mode: int, group: int | None) -> None:
    """Replace a published file at once: readers see the old bytes or the new. The caller holds the writers' lock."""
    temporary = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()  # left by a writer that was killed
    try:
        descriptor = create(temporary, mode=mode, group=group)
        try:
            write_all(descriptor, data)
            # Readers compare modification times, and the kernel's are as coarse as its tick: two replacements within
            # one, and an inode that is used again, would look like no change.
            written = time.time_ns()
            os.utime(descriptor, ns=(written, written))
            # Without this a power loss may leave an empty file under the name.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def make_private(directory: Path) -> None:
    """Make a directory that is missing, and what leads to it, durably. Raises ``OSError``."""
    for missing in reversed((directory, *directory.parents)):
        if not missing.exists():
            missing.mkdir(mode=0o700, exist_ok=True)
            missing.chmod(0o700)  # whatever the umask took away
            sync_directory(missing.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises ``OSError``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
