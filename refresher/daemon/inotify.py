"""Which entries of directories have changed, as Linux reports it: inotify(7), by ctypes."""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["Inotify"]

_IN_ATTRIB: Final = 0x004
_IN_MODIFY: Final = 0x002
_IN_MOVED: Final = 0x0C0
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_IGNORED: Final = 0x8000
_IN_UNMOUNT: Final = 0x2000
_IN_Q_OVERFLOW: Final = 0x4000
_IN_ONLYDIR: Final = 0x1000000
_CHANGES: Final = _IN_ATTRIB | _IN_MODIFY | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
_LOST: Final = _IN_IGNORED | _IN_UNMOUNT | _IN_Q_OVERFLOW
_EVENT: Final = struct.Struct("iIII")
_PIECE: Final = 256 * 1024


class Inotify:
    """Watches directories from now on, each the one that its path leads to now. Raises ``OSError`` if it cannot."""

    def __init__(self, directories: Sequence[Path]) -> None:
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._numbers: dict[int, int] = {}
        try:
            for number, directory in enumerate(directories):
                watch = _checked(libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _CHANGES))
                self._numbers[watch] = number
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Watch no more."""
        os.close(self._descriptor)

    def read(self) -> set[tuple[int, str]] | None:
        """Return the entries that have changed, each with the number of its directory; ``None`` if some are lost.

        The entry of the directory itself is empty.
        """
        found: set[tuple[int, str]] = set()
        with suppress(BlockingIOError):
            while events := os.read(self._descriptor, _PIECE):
                at = 0
                while at < len(events):
                    watch, mask, _, length = _EVENT.unpack_from(events, at)
                    at += _EVENT.size + length
                    if mask & _LOST or watch not in self._numbers:
                        return None
                    entry = os.fsdecode(events[at - length : at].rstrip(b"\0"))
                    found.add((self._numbers[watch], entry))
        return found


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
