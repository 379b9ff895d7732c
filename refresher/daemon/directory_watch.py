"""Find the grants whose files have changed, by polling: a few ``stat``, and a listing only after a change."""

import os
import time
from pathlib import Path
from typing import Final

from refresher.common.errors import DirectoryError
from refresher.storage import demands
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Listing

__all__ = ["FULL_SCAN_INTERVAL", "DirectoryWatch"]

FULL_SCAN_INTERVAL: Final = 37.0
"""Seconds after which every file is checked, even if no directory has changed."""

_CLOCK_JUMP: Final = 1.0
_SETTLED_NS: Final = 1_000_000_000

_Stamp = tuple[int, int, int, int]
_Files = tuple[_Stamp | None, _Stamp | None, bool, frozenset[int]]


class DirectoryWatch:
    """Watches ``directories``; for one thread."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._known: dict[str, _Files] = {}
        self._stamps: tuple[_Stamp | None, ...] | None = None
        self._listed_at = float("-inf")
        self._offset: float | None = None
        self.listing = Listing()
        self.demands = Demands(directory=directories.demands)
        self.demands_problem: str | None = None
        """Why agents cannot create demands; ``None`` if they can."""

    def changed(self) -> set[str]:
        """Return the names whose files have changed since the last call; all names if a clock was set.

        Raises ``DirectoryError`` if ``grants/`` cannot be read.
        """
        monotonic = time.monotonic()
        # The offset between the clocks changes when the wall clock is set and when the machine is suspended.
        offset = time.time() - monotonic
        jumped = self._offset is not None and abs(offset - self._offset) > _CLOCK_JUMP
        # tokens/ and demands/ may be symbolic links.
        shared = (self._directories.tokens, self._directories.demands)
        stamps = (_stamp(self._directories.grants), *(_stamp(path, follow=True) for path in shared))
        if not jumped and stamps == self._stamps and monotonic - self._listed_at < FULL_SCAN_INTERVAL:
            return set()
        problem = None
        if stamps[0] is not None and None in stamps[1:]:
            # Agents need the directory before the next rotation would create it.
            problem = self._directories.prepare()
        try:
            self.listing = self._directories.listing()
            self.demands_problem = problem or self.listing.demands_problem
        except DirectoryError:
            # Once the directory is readable again, every grant counts as changed: it may have become due meanwhile.
            self._known.clear()
            raise
        self.demands = demands.pending(self._directories, names := self.listing.all)
        before, self._known = self._known, {name: self._files(name) for name in names}
        # The clock of a file system is coarse: a second change within the same tick leaves the same stamp.
        now = time.time_ns()
        self._stamps = stamps if all(stamp is None or now - stamp[0] > _SETTLED_NS for stamp in stamps) else None
        self._listed_at, self._offset = monotonic, offset
        known = self._known
        # An incomplete listing may lack the demands of any grant, and the inspection looks them up by name.
        everything = jumped or not self.demands.complete
        return {name for name in before.keys() | known.keys() if everything or before.get(name) != known.get(name)}

    def forget(self, name: str) -> None:
        """Return ``name`` from the next call, also if it has not changed."""
        self._known.pop(name, None)
        self._stamps = None

    def _files(self, name: str) -> _Files:
        return (
            _stamp(self._directories.record(name)),
            _stamp(self._directories.token(name)),
            name in self.listing.unfinished,
            self.demands.by_name.get(name, frozenset()),
        )


def _stamp(path: Path, *, follow: bool = False) -> _Stamp | None:
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116  one call of thousands
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns
