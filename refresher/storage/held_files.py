"""The files of one name while its lock is held: the steps of a rotation in files (``store.Held``)."""

from collections.abc import Callable, Collection
from functools import partial

import msgspec

from refresher.common import clocks
from refresher.grants.record import Grant, Record, Stored
from refresher.storage import demands, files, records, recovery, sealing
from refresher.storage.journal import Attempt
from refresher.storage.publishing import Publisher, published_generation
from refresher.storage.store import Demanded, Report, ignore_report

__all__ = ["HeldFiles"]


class HeldFiles:
    """The files of one name; the caller holds their lock."""

    def __init__(self, publisher: Publisher, name: str) -> None:
        self._publisher = publisher
        self._directories = publisher.directories
        self._name = name
        self.before: Record | None = None
        """The record as ``recover`` found it."""

    def recover(
        self,
        *,
        unfinished: bool = False,
        giving_up: bool = False,
        removing: bool = False,
        report: Report = ignore_report,
    ) -> Stored:
        """Settle the files that an earlier attempt left (``recovery.recover``)."""
        found = records.load(self._directories, self._name)
        self.before = found.record
        return recovery.recover(
            self._directories,
            self._name,
            clocks.now(),
            unfinished=unfinished,
            giving_up=giving_up,
            removing=removing,
            loaded=found,
            report=report,
        )

    def replace_damaged(self, report: Report = ignore_report) -> tuple[Stored, str]:
        """Move a damaged record, which may hold the only copy of a token, and recover without it."""
        now = clocks.now()
        aside = files.keep_aside(self._directories.record(self._name), now.wall)
        return recovery.recover(self._directories, self._name, now, damaged=True, report=report), str(aside)

    def demanded(self, grant: Grant, listed: Collection[int]) -> Demanded:
        """Look up the demands for ``grant`` by name: nothing here lists a directory."""
        current = self._publisher.current(grant)
        pending = demands.of_name(self._directories, self._name, current, listed)
        return Demanded(
            generations=pending,
            current=current,
            counts=self._publisher.is_demanded(grant, pending, current),
            reason=partial(demands.reason, self._directories, grant, pending, current),
        )

    def begin(self, stored: Stored, grant: Grant, on_sent: Callable[[], None]) -> Attempt:
        """Reserve the space of the next record, and declare the attempt. Raises ``StorageError``."""
        attempt = Attempt(self._directories, self._name, stored, on_sent=on_sent)
        attempt.reserve(grant, clocks.now())
        return attempt

    def changed_meanwhile(self, stored: Stored) -> Grant | None:
        """Return the grant that somebody wrote without the lock, or ``None``. Raises ``GrantFileError``."""
        there = records.load(self._directories, self._name)
        return there.record if there.checksum != stored.checksum and isinstance(there.record, Grant) else None

    def backup_hint(self, grant: Grant) -> str:
        """Return a hint, from the time of the file, why the server has just rejected ``grant``."""
        return recovery.backup_hint(self._directories, grant)

    def write(self, stored: Stored, record: Record) -> Stored:
        """Replace the record. Raises ``StorageError``."""
        return records.write(self._directories, self._name, stored, record)

    def note(self, grant: Grant, *, end_warned: float) -> None:
        """Write ``end_warned`` into the record, if it is of the generation of ``grant``."""
        stored = records.load(self._directories, self._name)
        # Another record is there if this one had to be saved in the spill directory.
        if isinstance(stored.record, Grant) and stored.record.generation == grant.generation:
            self.write(stored, msgspec.structs.replace(stored.record, end_warned=end_warned))

    def delete_copies(self) -> None:
        """Delete the answers and the files set aside of a removed grant."""
        sealing.delete_copies(self._directories, self._name)

    def reseal(self, stored: Stored, *, only_published: bool = False) -> int:  # noqa: ARG002  a database needs it
        """Bring the record and what is kept to the form that is configured (``sealing.reseal``)."""
        return sealing.reseal(self._directories, self._name, stored)

    def seen_generation(self, record: Record | None) -> int:
        """Return the generation of the token file, as far as it proves what was published; otherwise -1."""
        return published_generation(self._directories, self._name, record)

    def is_stale(self, record: Record) -> bool:
        """Whether the token file is missing, differs from ``record``, or has other permissions."""
        return self._publisher.is_stale(record)

    def publish(self, record: Record, *, again: bool = False) -> bool:
        """Write the token file (``Publisher.publish``). Raises ``StorageError``."""
        return self._publisher.publish(record, again=again)

    def remove_demands(self, generations: Collection[int] | None, *, keep: range, warned: set[str]) -> None:
        """Remove the demands for ``generations`` from ``demands/``; ``None``: all that a listing finds."""
        if generations is None:
            generations = demands.pending(self._directories, (self._name,)).of(self._name, range(0))
        demands.remove(self._directories, self._name, frozenset(generations), keep=keep, warned=warned)
