"""The store in files: ``grants/`` of one machine, under the kernel's lock of each name (``held_files``)."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from refresher.common.errors import GrantFileError, StorageError
from refresher.grants.record import Grant, Stored
from refresher.storage import records
from refresher.storage.directories import Directories, Listing
from refresher.storage.publishing import Publisher
from refresher.storage.store import WAIT, Comparison, Holding

if TYPE_CHECKING:
    from refresher.storage.held_files import HeldFiles

__all__ = ["FileStore"]

_PREPARED_FOR: Final = 1.0
"""Seconds. A thousand rotations in one run need the directories prepared once, and not for each."""


class FileStore:
    """The grants in the directories of one machine."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._prepared_at = float("-inf")
        self._trouble: str | None = None
        self._known: _KnownTokens | None = None
        self.publisher: Final = Publisher(directories)

    @property
    def directories(self) -> Directories:
        """The directories of this machine."""
        return self._directories

    @property
    def place(self) -> str:
        """Where the grants are, for messages."""
        return str(self._directories.grants)

    @property
    def publishes_apart(self) -> bool:
        """No: agents read the token files."""
        return False

    def prepare(self) -> str | None:
        """Create the directories that are missing (``Directories.prepare``), unless this did so in the last second.

        Many rotations at once need it once: a request takes longer, and what is used is checked when it is opened.
        """
        if (now := time.monotonic()) - self._prepared_at > _PREPARED_FOR:
            self._trouble = self._directories.prepare()
            self._prepared_at = now
        return self._trouble

    def load_keys(self) -> None:
        """Read the key of each write. Raises ``KeyUnavailable``."""
        self._directories.keys.current()

    def listing(self, names: Collection[str] = ()) -> Listing:
        """List ``grants/``, or look up ``names`` there. Raises ``DirectoryError``."""
        return self._directories.listing(names)

    def load(self, name: str) -> Stored:
        """Return the record of ``name``. Raises ``GrantFileError``."""
        return records.load(self._directories, name)

    def load_each(self, names: Collection[str]) -> Iterator[tuple[str, Stored | GrantFileError]]:
        """Load many names; return an error in the place of a record that cannot be read."""
        for name in names:
            try:
                yield name, self.load(name)
            except GrantFileError as error:
                yield name, error

    def holdings(self, names: Collection[str] = ()) -> Iterator[tuple[str, list[Holding]]]:
        """Return what holds secrets of each of ``names``, or of all, and with what key. Raises ``DirectoryError``."""
        from refresher.storage import sealing

        listing = self._directories.listing(names)
        for name in sorted({*names} or {*listing.all, *sealing.names_with_copies(self._directories)}):
            left = listing.unfinished.get(name, set())
            yield name, sealing.holdings(self._directories, name, left)

    def stamps(self) -> Mapping[str, int]:
        """Return a number for each name, which changes with its record."""
        from refresher.storage import stamps

        return stamps.of_records(self._directories)

    @contextmanager
    def held(self, name: str, *, stopping: Callable[[], bool], wait: float = WAIT) -> "Iterator[HeldFiles]":
        """Hold the lock over all files of ``name``. Raises ``LockBusy``, ``Interrupted`` and ``StorageError``."""
        # The library of the lock is not needed by a command that changes nothing.
        from refresher.storage import lock
        from refresher.storage.held_files import HeldFiles

        with lock.held(self._directories.lock(name), stopping=stopping, wait=wait):
            yield HeldFiles(self.publisher, name)

    def give_way(self, name: str) -> None:
        """Do nothing: nothing is claimed before it is held."""

    def importing(self, *, stopping: Callable[[], bool]) -> AbstractContextManager[None]:
        """Hold the lock of imports. Raises ``LockBusy``, ``Interrupted`` and ``StorageError``."""
        from refresher.storage import lock

        return lock.held(self._directories.import_lock, stopping=stopping)

    def expect_imports(self, fingerprints: Collection[str]) -> None:
        """Read all records once, and not for each import of the refresh tokens with ``fingerprints``."""
        self._known = _KnownTokens(self._directories, fingerprints)

    def compare(self, imported: Grant) -> Iterator[Comparison]:
        """Return what is stored under each name that may hold, or have spent, the refresh token of ``imported``.

        Raises ``DirectoryError`` and ``StorageError``.
        """
        listing = self._directories.listing() if self._known is None else self._known.listing(imported)
        for name in listing.all:
            yield self.stored_under(name, unfinished=name in listing.unfinished)

    def stored_under(self, name: str, *, unfinished: bool | None = None) -> Comparison:
        """Return the records under ``name``: the next one of an interrupted operation too.

        ``unfinished``: whether an attempt left files; ``None``: not known.
        """
        try:
            found = [self.load(name).record]
            if unfinished or (unfinished is None and self._directories.attempt_files(name)):
                # An interrupted import holds its token too: the next writer of that name adopts it.
                paths = self._directories.candidates(name)
                found += [records.read_candidate(path, name, self._directories.keys).record for path in paths]
        except (GrantFileError, OSError) as error:
            return Comparison(name, [], str(error))
        return Comparison(name, found)

    def note_import(self, grant: Grant) -> None:
        """Note an import in the file of its lock, before the record: then no other command overlooks it.

        It needs no sync: after a crash of the system, no process keeps what it read. Raises ``StorageError``.
        """
        path = self._directories.import_lock
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # In place: an import that is cut off leaves another value too.
                os.pwrite(descriptor, this_import := os.urandom(16), 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; nothing was changed") from None
        if self._known is not None:
            self._known.add(grant, this_import)


class _KnownTokens:
    """The names that have the refresh tokens of a command that imports many: it looks at all records once.

    It only selects the records that a comparison reads. ``fingerprints``: those of the tokens to look for; any other
    token is compared with all records. If another process has imported meanwhile, it looks again.
    """

    def __init__(self, directories: Directories, fingerprints: Collection[str]) -> None:
        self._directories = directories
        self._fingerprints = fingerprints
        self._names: dict[str, set[str]] = {}
        self._always: set[str] = set()
        """Names whose record cannot be read."""
        self._unfinished: dict[str, set[str]] = {}
        self._last_import: bytes | None = None

    def listing(self, imported: Grant) -> Listing:
        """Return the names to compare with. The caller holds the lock of imports.

        Raises ``DirectoryError`` and ``StorageError``.
        """
        if (last_import := _last_import(self._directories)) != self._last_import:
            self._look()
            self._last_import = last_import
        if (names := self._names.get(imported.fingerprint() or "")) is None:
            return self._directories.listing()
        return Listing(tuple({*names, *self._always, imported.name}), self._unfinished)

    def add(self, imported: Grant, this_import: bytes) -> None:
        """Note that ``imported`` is being stored."""
        self._names.get(imported.fingerprint() or "", set()).add(imported.name)
        self._last_import = this_import

    def _look(self) -> None:
        listing = self._directories.listing()
        self._names = {fingerprint: set() for fingerprint in self._fingerprints}
        self._always, self._unfinished = set(), listing.unfinished
        for name in listing.names:
            try:
                record = records.load(self._directories, name).record
            except (GrantFileError, OSError):
                self._always.add(name)
                continue
            known = () if record is None else record.spent
            if isinstance(record, Grant) and (fingerprint := record.fingerprint()) is not None:
                known = (*known, fingerprint)
            for fingerprint in self._names.keys() & known:
                self._names[fingerprint].add(name)


def _last_import(directories: Directories) -> bytes:
    """Return what the last import noted, or nothing. Raises ``StorageError``."""
    try:
        return directories.import_lock.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {directories.import_lock}: {error.strerror}") from None
