"""Create, read, replace and sync files; each is private until its permissions are set."""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from refresher.common.reading import FileWithStatus, read_regular

__all__ = [
    "NotPrivate",
    "create",
    "durable_create",
    "is_private",
    "keep_aside",
    "make_directories",
    "read",
    "replace",
    "set_aside",
    "sync_directory",
    "unused",
    "write_all",
]

_NOT_FOLLOWED: Final = os.O_NOFOLLOW | os.O_CLOEXEC


class NotPrivate(ValueError):
    """Other users may have read or changed a private file."""


def read(
    path: Path | str, largest: int, *, private: bool = False, directory: int | None = None
) -> FileWithStatus | None:
    """Read a regular file; return ``None`` if there is no file. ``directory``: the descriptor of its directory.

    Raises ``OSError``, and ``ValueError`` for anything but a regular file of at most ``largest`` bytes; if
    ``private``, also ``NotPrivate``. It does not block on a FIFO and does not follow a link.
    """
    try:
        found = read_regular(path, largest, flags=os.O_NOFOLLOW, directory=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from None
        raise
    if private:
        _check_private(found.status)
    return found


def _check_private(status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        # Root that takes a file of a service would break the service.
        mend = "run this as that user" if os.geteuid() == 0 else f"if it is yours, run 'chown {os.geteuid()}' on it"
        raise NotPrivate(f"it belongs to user {status.st_uid}, this is user {os.geteuid()}: {mend}")
    if status.st_mode & 0o077:
        raise NotPrivate("others could read or change it: if its content is unchanged, run 'chmod 600' on it")


def is_private(directory: Path) -> bool:
    """Whether ``directory`` is one of this user that no other can read or change. Raises ``OSError``."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def unused(path: Path, count: int) -> Path:
    """Return the first of the names ``PATH.COUNT`` that nothing has, not even a dangling link."""
    while os.path.lexists(free := path.with_name(f"{path.name}.{count}")):
        count += 1
    return free


def set_aside(path: Path, now: float) -> Path:
    """Rename a file to a free name and return its new path. Raises ``OSError``."""
    return path.rename(_aside(path, now))


def _aside(path: Path, now: float) -> Path:
    return unused(path.with_name(f"{path.name}.aside"), int(now))


def keep_aside(path: Path, now: float, *, directory: int | None = None) -> Path:
    """Link a file under a free name, so that the caller can replace it; return that name. Raises ``OSError``.

    ``directory``: its directory, if the caller has opened it. After a kill the file is still in its place too.
    """
    aside = _aside(path, now)
    names = (path, aside) if directory is None else (path.name, aside.name)
    try:
        os.link(*names, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError:
        # a directory, or a file system without hard links
        os.rename(*names, src_dir_fd=directory, dst_dir_fd=directory)
    return aside


def create(
    path: Path | str,
    *,
    mode: int = 0o600,
    owner: int | None = None,
    group: int | None = None,
    directory: int | None = None,
) -> int:
    """Create a file that does not exist yet, below an open directory if given; return its descriptor.

    Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, 0o600, dir_fd=directory)
    try:
        if owner is not None or group is not None:
            os.fchown(descriptor, -1 if owner is None else owner, -1 if group is None else group)
        # After the group, and independent of the umask.
        os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: bytes, offset: int = 0) -> None:
    """Write all of ``data``, in several calls if the kernel takes less. Raises ``OSError``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def durable_create(
    path: Path | str,
    data: bytes,
    *,
    mode: int = 0o600,
    owner: int | None = None,
    group: int | None = None,
    directory: int | None = None,
) -> None:
    """Create a file and sync its bytes; its name is durable once the directory is synced. Raises ``OSError``."""
    descriptor = create(path, mode=mode, owner=owner, group=group, directory=directory)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(directory: int, name: str, data: bytes, *, mode: int, owner: int | None = None, group: int | None) -> None:
    """Replace a file of an open directory atomically: readers see the old bytes or the new.

    The caller holds the lock. Raises ``OSError``.
    """
    temporary = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)  # left by a writer that was killed
    try:
        # Without its sync a power loss may leave an empty file under the name.
        durable_create(temporary, data, mode=mode, owner=owner, group=group, directory=directory)
        # Readers compare modification times, and the kernel's have the resolution of its tick: two replacements within
        # one tick that use one inode again would look like no change.
        written = time.time_ns()
        os.utime(temporary, ns=(written, written), dir_fd=directory, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def make_directories(directory: Path, mode: int = 0o700) -> None:
    """Create a directory and its parents durably, with ``mode``, if they are missing. Raises ``OSError``."""
    for missing in reversed((directory, *directory.parents)):
        if not missing.exists():
            missing.mkdir(mode=0o700, exist_ok=True)
            missing.chmod(mode)  # independent of the umask
            sync_directory(missing.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises ``OSError``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
