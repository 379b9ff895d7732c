"""The private socket of the daemon, for ``refresher health`` and ``login``: only its own user can reach it.

It is in ``grants/``, so no other user can occupy it, exhaust it or answer in place of the daemon.
"""

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["PrivateSocket", "connect", "is_served"]

_LONGEST_PATH: Final = 107 if sys.platform == "linux" else 103
_BACKLOG: Final = 64
_TIMEOUT: Final = 1.0


class PrivateSocket:
    """A listening socket at a path of the file system."""

    def __init__(self, path: Path) -> None:
        """Listen at ``path``, and replace the socket of a daemon that was killed.

        Raises ``OSError``; ``FileExistsError`` while another daemon serves there.
        """
        self.path: Final = path
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode) or is_served(path):
                raise FileExistsError
            path.unlink()
        self.socket: Final = socket.socket(socket.AF_UNIX)
        try:
            with _short(path) as short:
                self.socket.bind(short)
            self._inode: Final = path.lstat().st_ino
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            if error.errno == errno.EADDRINUSE:
                raise FileExistsError from None  # another daemon starts at the same moment
            raise

    def in_place(self) -> bool:
        """Whether the path still leads to this socket."""
        try:
            return self.path.lstat().st_ino == self._inode
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the path, unless another daemon has replaced it."""
        with suppress(OSError):
            if self.in_place():
                self.path.unlink()


def connect(path: Path, timeout: float) -> socket.socket:
    """Return a connection to the daemon. Raises ``OSError``."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        with _short(path) as short:
            connection.connect(short)
    except OSError:
        connection.close()
        raise
    return connection


def is_served(path: Path) -> bool:
    """Whether a daemon listens at ``path``; never raises."""
    try:
        connect(path, _TIMEOUT).close()
    except TimeoutError:
        return True  # its queue is full
    except OSError:
        return False
    return True


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a path that fits into the address of a socket, which has 108 bytes."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    if sys.platform != "linux":
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
