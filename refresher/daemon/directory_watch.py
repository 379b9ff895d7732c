"""Find the grants whose files have changed.

The base is polling: a few ``stat``, and after a change a listing with the stamps of all names. Where Linux reports the
entries that have changed, only these are looked at, so that a change costs the same among any number of grants. These
reports are not trusted: if a directory has changed without one, everything is listed, and so it is from time to time.
"""

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from refresher.common.errors import DirectoryError
from refresher.daemon.inotify import Inotify
from refresher.storage import demands, stamps, startup_checks
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Listing, left_by_attempt
from shim._token import is_name

__all__ = ["FULL_SCAN_INTERVAL", "DirectoryWatch"]

FULL_SCAN_INTERVAL: Final = 37.0
"""Seconds after which every file is checked, even if no directory has changed; more if that takes more than 0.185 s."""

_FULL_SCAN_SHARE: Final = 0.005
_CLOCK_JUMP: Final = 1.0
_SETTLED_NS: Final = 1_000_000_000
_NO_RECORD: Final = 0
_GRANTS, _DEMANDS = 0, 2
_SUFFIX: Final = ".json"


class _Stamp(NamedTuple):
    """What is different after a directory has changed."""

    inode: int
    size: int
    modified: int
    changed: int

    @property
    def is_settled(self) -> bool:
        """Whether a later change leaves another stamp: the clock of a file system is coarse."""
        return time.time_ns() - self.modified > _SETTLED_NS


_Stamps = tuple[_Stamp | None, _Stamp | None, _Stamp | None]
"""Of ``grants/``, ``tokens/`` and ``demands/``; ``None`` for one that does not exist."""


class DirectoryWatch:
    """Watches ``directories``; for one thread."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._known: dict[str, int] = {}
        self._forgotten: set[str] = set()
        self._inotify: Inotify | None = None
        self._stamps: _Stamps | None = None
        self._demands_settled = False
        self._listed_at = float("-inf")
        self._interval = FULL_SCAN_INTERVAL
        self._offset: float | None = None
        self.listing = Listing()
        """Its names are those of the last full scan; what attempts left is always new."""
        self.demands = Demands(directory=directories.demands)
        self.demands_problem: str | None = None
        """Why agents cannot create demands; ``None`` if they can."""

    def close(self) -> None:
        """Watch no more."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    @property
    def names(self) -> list[str]:
        """The names that have a record, or what an attempt left."""
        return list(self._known)

    def changed(self) -> set[str]:
        """Return the names whose files have changed since the last call; all names if a clock was set.

        Raises ``DirectoryError`` if ``grants/`` cannot be read.
        """
        monotonic = time.monotonic()
        # The offset between the clocks changes when the wall clock is set and when the machine is suspended.
        offset = time.time() - monotonic
        jumped = self._offset is not None and abs(offset - self._offset) > _CLOCK_JUMP
        directories = self._directories
        tokens, demanded = _stamp(directories.tokens, follow=True), _stamp(directories.demands, follow=True)
        found = (_stamp(directories.grants), tokens, demanded)
        if not jumped and monotonic - self._listed_at < self._interval:
            changed = self._reported(found)
            if changed is not None:
                return changed
        started = time.thread_time()
        changed = self._scan(found, everything=jumped)
        self._listed_at, self._offset = monotonic, offset
        self._interval = max(FULL_SCAN_INTERVAL, (time.thread_time() - started) / _FULL_SCAN_SHARE)
        return changed

    def forget(self, name: str) -> None:
        """Return ``name`` from the next call, also if it has not changed."""
        self._forgotten.add(name)

    def _reported(self, found: _Stamps) -> set[str] | None:
        """Return the names that have changed; ``None`` if only a full scan can tell."""
        before = self._stamps
        if self._inotify is None or before is None:
            return set() if found == before and not self._forgotten else None
        entries = self._inotify.read()
        demands_listed = self._demands_settled and found[2] == before[2]
        if entries == set() and found == before and demands_listed and not self._forgotten:
            return set()
        if entries is None or any(
            not _is_explained(*each, entries) for each in zip(before, found, range(3), strict=True)
        ):
            return None
        self._stamps = found
        changed = self._look_at(entries)
        return changed if demands_listed and self._demands_settled else changed | self._list_demands(found)

    def _look_at(self, entries: set[tuple[int, str]]) -> set[str]:
        """Return the forgotten names, and those of the entries of ``grants/`` and ``tokens/``."""
        names, unfinished = self._forgotten, self.listing.unfinished
        self._forgotten = set()
        for number, entry in entries:
            if number == _GRANTS and (attempted := left_by_attempt(entry)) is not None:
                name = attempted
                names.add(name)
                if os.path.lexists(self._directories.grants / entry):
                    unfinished.setdefault(name, set()).add(entry)
                elif name in unfinished:
                    unfinished[name].discard(entry)
                    if not unfinished[name]:
                        del unfinished[name]
            elif entry.endswith(_SUFFIX) and is_name(name := entry.removesuffix(_SUFFIX)):
                names.add(name)
        changed = set()
        for name in names:
            before, stamp = self._known.pop(name, None), stamps.find_one(self._directories, name)
            if stamp is not None or name in unfinished:
                self._known[name] = stamp or _NO_RECORD
                if before is None:
                    self._demands_settled = False  # its demands may have been there before
            if before is not None or name in self._known:
                changed.add(name)
        return changed

    def _list_demands(self, found: _Stamps) -> set[str]:
        """List ``demands/``, and return the names whose demands have changed."""
        before = self.demands.by_name
        self.demands = demands.pending(self._directories, self._known)
        stamp = found[_DEMANDS]
        self._demands_settled = stamp is None or stamp.is_settled
        if not self.demands.complete:
            # It may lack the demands of any grant, and the inspection looks them up by name.
            return set(self._known)
        after = self.demands.by_name
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    def _scan(self, found: _Stamps, *, everything: bool) -> set[str]:
        """List everything, and return the names that have changed."""
        directories, before, unfinished = self._directories, self._known, self.listing.unfinished
        self.close()
        self._stamps = problem = None
        if found[_GRANTS] is not None and None in found:
            # Agents need the directory before the next rotation would create it.
            problem = directories.prepare()
        self._inotify = self._watched()  # first: what changes from here on is reported
        try:
            listing = directories.listing()
        except DirectoryError:
            # Once the directory is readable again, every grant counts as changed: it may have become due meanwhile.
            self._known = {}
            raise
        of = stamps.find_all(directories).by_name
        self.listing = listing
        self.demands_problem = problem or self.listing.demands_problem
        self._known = known = {name: of.get(name, _NO_RECORD) for name in self.listing.all}
        changed = self._list_demands(found)
        if self._inotify is not None or all(stamp is None or stamp.is_settled for stamp in found):
            self._stamps = found
        if everything:
            changed |= known.keys()
        changed |= {name for name, stamp in known.items() if before.get(name) != stamp}
        changed |= before.keys() - known.keys()
        changed |= unfinished.keys() ^ self.listing.unfinished.keys()
        changed |= self._forgotten & known.keys()
        self._forgotten = set()
        return changed

    def _watched(self) -> Inotify | None:
        """Have Linux report changes; ``None`` if it cannot, or not those that another machine makes."""
        watched = (self._directories.grants, self._directories.tokens)
        try:
            return None if any(map(startup_checks.is_shared, watched)) else Inotify(watched)
        except OSError:
            return None


def _is_explained(before: _Stamp | None, found: _Stamp | None, number: int, entries: set[tuple[int, str]]) -> bool:
    """Whether a listing or the reported ``entries`` of a directory are all that has changed in it."""
    if before is found is None and number == _DEMANDS:
        return True
    if before is None or found is None or before.inode != found.inode or (number, "") in entries:
        return False
    if number == _DEMANDS:
        return before.changed == found.changed or before.modified != found.modified
    return before == found or any(number == there for there, _ in entries)


def _stamp(path: Path, *, follow: bool = False) -> _Stamp | None:
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116  five times a second
    except OSError:
        return None
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
