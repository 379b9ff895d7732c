"""One directory: make it, open it, share it, and check who else can read or replace what is in it."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refresher.common.errors import DirectoryError
from refresher.storage import files, write_access
from refresher.storage.write_access import Found

__all__ = [
    "check_demands",
    "check_private",
    "check_sticky",
    "check_tokens",
    "make",
    "opened",
    "refuse_link_of_another",
    "share",
]


def check_private(directory: Path) -> None:
    """Raise ``DirectoryError`` if a directory of refresh tokens is not private. Raises ``OSError``."""
    status = directory.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise DirectoryError(f"{directory} is a symbolic link: make the state directory the link instead")
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{directory} is not a directory")
    if status.st_uid != os.geteuid():
        raise DirectoryError(
            f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}: run it as its owner"
        )
    if status.st_mode & 0o077:
        raise DirectoryError(f"others can read {directory}, which holds refresh tokens: run 'chmod 700' on it")


def check_tokens(directory: Path, status: os.stat_result) -> None:
    """Raise ``DirectoryError`` if others can write to a directory of access tokens."""
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{directory} is not a directory")
    # A sticky bit would not help: others could create a token file that does not exist yet.
    if (who := write_access.writers(status)) is not None:
        change = "o-w" if who == "anybody" else "g-w"
        raise DirectoryError(
            f"{who} can write to {directory} and replace the tokens that agents trust: run 'chmod {change}' on it"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(
            f"{directory} belongs to user {status.st_uid}, who could replace the tokens that agents trust: "
            f"run 'chown {os.geteuid()}' on it"
        )


def check_demands(directory: Path, status: os.stat_result) -> None:
    """Raise ``DirectoryError`` if another user decides which demands are in a directory."""
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{directory} is not a directory")
    if status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(
            f"{directory} belongs to user {status.st_uid}, who could remove demands: run 'chown {os.geteuid()}' on it"
        )


def check_sticky(directory: Path, status: os.stat_result) -> None:
    """Raise ``DirectoryError`` if each agent could remove the demands of the others."""
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise DirectoryError(f"anybody can write to {directory} and remove demands: run 'chmod o-w' on it")


def refuse_link_of_another(found: Found) -> None:
    """Raise ``DirectoryError`` if another user can change where a path leads, by a link on the way."""
    if (link := found.link_of_another) is not None:
        path, user = link
        raise DirectoryError(f"{path} is a link of user {user}, and may lead to private files: remove it")


def make(directory: Path, mode: int, *, parents: int) -> bool:
    """Create a directory if it is missing; return whether this process did."""
    if directory.exists():
        return False
    files.make_directories(directory.parent, parents)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False  # another process has just created it
    files.sync_directory(directory.parent)
    directory.chmod(mode)  # independent of the umask
    return True


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Open a directory, but not through the link of another user: it may lead to the grants.

    Raises ``DirectoryError`` and ``OSError``.
    """
    refuse_link_of_another(found := write_access.find(directory))
    if found.missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    path, status = found.directory
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except NotADirectoryError:
        raise DirectoryError(f"{directory} is not a directory") from None
    try:
        # Another user may have put a link in its place, or in place of a directory above it, meanwhile.
        if not os.path.samestat(os.fstat(descriptor), status):
            raise DirectoryError(f"{directory} was replaced by another directory just now: try again")
        yield descriptor
    finally:
        os.close(descriptor)


def share(descriptor: int, directory: Path, mode: int, group: int) -> None:
    """Give an open directory to the group. Raises ``OSError``."""
    try:
        status = os.fstat(descriptor)
        if status.st_gid != group:
            os.fchown(descriptor, -1, group)
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
