"""What has changed in the three directories, and whether the clocks still agree.

Polling: a few ``stat`` a look, and a listing only where one of them says that something is new.
"""

import os
import time
from pathlib import Path
from typing import Final

from refresher.common.errors import DirectoryError
from refresher.storage import demands
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Listing
from shim._token import is_name

__all__ = ["LOOK_AT_LEAST", "Watch"]

LOOK_AT_LEAST: Final = 37.0
"""Seconds after which every file is looked at, though no directory says that anything is new."""

_PARTED: Final = 1.0
_SETTLED_NS: Final = 1_000_000_000

_Stamp = tuple[int, int, int, int]
_Seen = tuple[_Stamp | None, _Stamp | None, bool, frozenset[int]]


class Watch:
    """Looks around in ``directories``; used from one thread."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._known: dict[str, _Seen] = {}
        self._stamps: tuple[_Stamp | None, ...] | None = None
        self._looked_at = float("-inf")
        self._apart: float | None = None
        self.listing = Listing((), frozenset())
        self.asked = Demands({})
        self.trouble: str | None = None
        """What is wrong with ``demands/``."""

    def changed(self) -> set[str]:
        """Return the names of which something is new since the last call: all of them where a clock was set.

        Raises ``DirectoryError`` where ``grants/`` cannot be read.
        """
        monotonic = time.monotonic()
        # A clock that was set, and a machine that was suspended, look alike: wall and monotonic time part.
        apart = time.time() - monotonic
        jumped = self._apart is not None and abs(apart - self._apart) > _PARTED
        # Tokens and demands may be links to elsewhere; what is in them counts.
        shared = (self._directories.tokens, self._directories.demands)
        stamps = (_stamp(self._directories.grants), *(_stamp(path, follow=True) for path in shared))
        if not jumped and stamps == self._stamps and monotonic - self._looked_at < LOOK_AT_LEAST:
            return set()
        self.trouble = None
        if stamps[0] is not None and (None in stamps[1:] or not self._directories.demands.is_dir()):
            # Agents cannot demand anything where there is no directory; nor would it be made before the next rotation.
            self.trouble = self._directories.prepare()
        try:
            self.listing = self._directories.listing()
        except DirectoryError:
            # What could not be seen now may look as before when it can be seen again, and was not looked at meanwhile.
            self._known.clear()
            raise
        self.asked = demands.pending(self._directories)
        there = {name for name in (*self.listing.names, *self.listing.unfinished) if is_name(name)}
        seen = {name: self._see(name) for name in there}
        before, self._known = self._known, seen
        # A file system's clock is coarse: what changed within the same tick as what was seen would look like nothing.
        now = time.time_ns()
        self._stamps = stamps if all(stamp is None or now - stamp[0] > _SETTLED_NS for stamp in stamps) else None
        self._looked_at, self._apart = monotonic, apart
        return {name for name in before.keys() | seen.keys() if jumped or before.get(name) != seen.get(name)}

    def names(self) -> list[str]:
        """Return the names that were there when they were last listed."""
        return list(self._known)

    def forget(self, name: str) -> None:
        """Have ``name`` count as changed at the next call, whatever is seen of it."""
        self._known.pop(name, None)
        self._stamps = None

    def _see(self, name: str) -> _Seen:
        return (
            _stamp(self._directories.record(name)),
            _stamp(self._directories.token(name)),
            name in self.listing.unfinished,
            self.asked.by_name.get(name, frozenset()),
        )


def _stamp(path: Path, *, follow: bool = False) -> _Stamp | None:
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116  one call of thousands
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns
