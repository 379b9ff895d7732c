"""The store in PostgreSQL (``store.Store``)."""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from refresher.common.errors import GrantFileError, Interrupted, LockBusy, StorageError
from refresher.common.throttle import Throttle
from refresher.grants.record import Grant, Stored
from refresher.storage.directories import Directories, Listing
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import epochs, leases, migrations, sealing, settling
from refresher.storage.postgres.attempt import commit_spills, read_clocks
from refresher.storage.postgres.changes import CHANNEL
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.due import claim_due, count_due
from refresher.storage.postgres.held_grant import HeldGrant
from refresher.storage.postgres.leases import Lease
from refresher.storage.postgres.spills import Unstored
from refresher.storage.publishing import Publisher
from refresher.storage.sealing import names_with_copies, opened
from refresher.storage.store import WAIT, Comparison, Holding

__all__ = ["PostgresStore"]

log = logging.getLogger(__name__)

_POLL: Final = 0.2
_GIVEN_WAY: Final = 60.0
"""Seconds: more than the exchanges take of the sources that a grant usually has."""

_NOTIFY_INTERVAL: Final = 0.1
_AT_ONCE: Final = 500


class PostgresStore:
    """The grants in the database at ``address``; ``mirror``: patterns of the names whose tokens this host needs."""

    def __init__(self, address: str, directories: Directories, mirror: Collection[str] = ("*",)) -> None:
        self.database: Final = Database(address)
        self.publisher: Final = Publisher(directories)
        self._directories = directories
        self._mirror = tuple(mirror)
        self._claimed: dict[str, Lease] = {}
        self._in_flight: dict[uuid.UUID, Lease] = {}
        self._unreleased: SimpleQueue[HeldGrant] = SimpleQueue()
        self._unstored: list[Unstored] = []
        self._ready = False
        self._said = Throttle()
        self._notified_at = float("-inf")

    @property
    def directories(self) -> Directories:
        """The directories of this host."""
        return self._directories

    def use_keys(self, keys: KeyRing) -> None:
        """Use other keys from now on; what is held keeps those that it began with."""
        self._directories = self.publisher.directories = msgspec.structs.replace(self._directories, keys=keys)

    @property
    def place(self) -> str:
        """Where the grants are, for messages; it holds no secret."""
        return f"{self.database.place}, database {self.database.name}"

    def identity(self) -> tuple[str, str]:
        """Return what is the same for all addresses of this database. Raises ``StorageError``."""
        with self.database.transaction() as cursor:
            cursor.execute("SELECT system_identifier::text, current_database() FROM pg_control_system()")
            system, name = cursor.fetchone() or ("", "")
            return system, name

    def mirrors(self, name: str) -> bool:
        """Whether this host publishes the tokens of ``name``."""
        return any(fnmatchcase(name, pattern) for pattern in self._mirror)

    @property
    def publishes_apart(self) -> bool:
        """Yes: each host mirrors what is in the database."""
        return True

    def prepare(self) -> str | None:
        """Create the directories of this host, and check the schema; raise ``DirectoryError`` and ``StorageError``."""
        trouble = self._directories.prepare()
        self._check()
        return trouble

    def _check(self) -> None:
        if not self._ready:
            migrations.require_latest(self.database)
            epochs.begin_epoch(self.database)
            self._ready = True

    def load_keys(self) -> None:
        """Read the keys of each write: of records, and of what is published. Raises ``KeyUnavailable``."""
        self._directories.keys.load()

    def listing(self, names: Collection[str] = ()) -> Listing:
        """Return the names in the database. Raises ``StorageError``."""
        self._check()
        with self.database.transaction() as cursor:
            cursor.execute(
                """SELECT name FROM refresher.lease WHERE kind <> 'empty'
                AND (cardinality(%(names)s::text[]) = 0 OR name = ANY(%(names)s)) ORDER BY name""",
                {"names": list(names)},
            )
            return Listing(tuple(row[0] for row in cursor.fetchall()))

    def load(self, name: str) -> Stored:
        """Return the record of ``name``. Raises ``GrantFileError``, also if the database cannot be reached."""
        try:
            self._check()
            with self.database.transaction() as cursor:
                return settling.load(cursor, name, read_clocks(cursor), self._directories.keys)
        except StorageError as error:
            raise GrantFileError(str(error)) from None

    def load_each(self, names: Collection[str]) -> Iterator[tuple[str, Stored | GrantFileError]]:
        """Load many names, some in each query; return an error in the place of a record that cannot be read."""
        self._check()
        wanted = [*names]
        for start in range(0, len(wanted), _AT_ONCE):
            with self.database.transaction() as cursor:
                found = settling.load_each(
                    cursor, wanted[start : start + _AT_ONCE], read_clocks(cursor), self._directories.keys
                )
            yield from found

    def holdings(self, names: Collection[str] = ()) -> Iterator[tuple[str, list[Holding]]]:
        """Return what holds secrets of each of ``names``, or of all, and with what key. Raises ``StorageError``."""
        wanted = sorted(names or {*self.listing().names, *self._kept()})
        for start in range(0, len(wanted), _AT_ONCE):
            with self.database.transaction() as cursor:
                found = sealing.holdings(cursor, wanted[start : start + _AT_ONCE])
            for name, held in found.items():
                yield name, [*held, *sealing.on_this_host(self._directories, name)]

    def _kept(self) -> set[str]:
        """Return the names of which something is kept for a person, also without a grant."""
        with self.database.transaction() as cursor:
            return sealing.orphaned(cursor) | names_with_copies(self._directories)

    def opened_orphan(self, attempt: uuid.UUID) -> bytes:
        """Return what is in the orphan of ``attempt``, opened. Raises ``GrantFileError`` and ``StorageError``."""
        with self.database.transaction() as cursor:
            cursor.execute("SELECT name, bytes FROM refresher.orphan WHERE attempt = %s", (attempt,))
            row = cursor.fetchone()
        if row is None:
            raise GrantFileError(f"there is no orphan {attempt} in {self.place}: 'refresher store check' lists them")
        return opened(bytes(row[1]), row[0], self._directories.keys)

    def stamps(self) -> Mapping[str, int]:
        """Return a number for each name, which changes with its record. Raises ``StorageError``."""
        self._check()
        with self.database.transaction() as cursor:
            cursor.execute("SELECT name, xmin::text::bigint FROM refresher.record")
            return dict(cursor.fetchall())

    def heartbeat(self) -> epochs.Heartbeat:
        """Return what this process does once a second while it runs."""
        return epochs.Heartbeat(self.database, self._in_flight)

    def claim_due(
        self,
        most: int,
        *,
        each: int,
        rooms: Mapping[str, int],
        until: datetime | None = None,
        before: datetime | None = None,
    ) -> dict[str, str]:
        """Claim up to ``most`` grants that are due (``due.claim_due``), and return the server of each.

        The next ``held`` of a name uses its lease. Raises ``StorageError``, and ``KeyUnavailable`` if the keys of each
        write are not here: then it claims nothing, as this host could store no answer.
        """
        self._check()
        self.load_keys()
        claimed = claim_due(
            self.database,
            most,
            each=each,
            rooms=rooms,
            key_ids=self._key_ids(),
            unstored=self._unstored,
            until=until,
            before=before,
        )
        self._claimed |= {lease.name: lease for lease, _ in claimed}
        return {lease.name: server for lease, server in claimed}

    def _key_ids(self) -> Collection[str]:
        """Return the ids of the keys of this host; warn of one that cannot be read: its grants are not claimed."""
        keys = self._directories.keys
        for problem in keys.problems():
            if self._said.is_new("keys", problem):
                log.warning("%s; grants that are sealed with it are not rotated here", problem)
        return keys.known()

    def count_due(self, until: datetime, before: datetime) -> int:
        """Return how many grants a later ``claim_due`` may find. Raises ``StorageError``."""
        return count_due(self.database, until, before, self._directories.keys.known(), self._unstored)

    def now(self) -> datetime:
        """Return the time of the database. Raises ``StorageError``."""
        self._check()
        with self.database.transaction() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            row = cursor.fetchone()
        return datetime.now(UTC) if row is None else row[0]

    def begin_epoch(self) -> None:
        """Take note of a promotion, without which nothing can be claimed. Raises ``StorageError``."""
        epochs.begin_epoch(self.database)

    def give_back(self) -> None:
        """Release the leases that were claimed, and that nobody holds yet."""
        while self._claimed:
            try:
                _, lease = self._claimed.popitem()
            except KeyError:
                return  # a job took the last one
            with suppress(StorageError), self.database.transaction() as cursor:
                leases.release(cursor, lease, 0.0)

    def release_again(self) -> None:
        """Try once more what could not be released; what fails again is left for the next call."""
        for _ in range(self._unreleased.qsize()):
            try:
                held = self._unreleased.get_nowait()
            except Empty:
                return
            try:
                held.release(again=True)
            except StorageError:
                self._unreleased.put(held)

    def commit_spills(self) -> list[Unstored]:
        """Store the spills of this host; return those that cannot be stored: their grants are not claimed here.

        Raises ``StorageError``.
        """
        self._unstored = commit_spills(self.database, self._directories)
        return self._unstored

    def is_held_up(self, unstored: Unstored) -> bool:
        """Whether a spill may hold the successor of what is stored under its name."""
        try:
            record = self.load(unstored.name).record
        except GrantFileError:
            return True
        return isinstance(record, Grant) and unstored.concerns(record.grant_id, record.generation)

    @contextmanager
    def held(self, name: str, *, stopping: Callable[[], bool], wait: float = WAIT) -> Iterator[HeldGrant]:
        """Hold the lease of ``name``. Raises ``LockBusy``, ``Interrupted`` and ``StorageError``."""
        self._check()
        # Before the claim: a spill needs no lease, and ends the one that its attempt left.
        unstored = commit_spills(self.database, self._directories, name)
        ends = time.monotonic() + wait
        while (lease := self._claimed.pop(name, None) or leases.claim(self.database, name)) is None:
            self.begin_epoch()
            if stopping():
                raise Interrupted("interrupted while waiting for a grant; nothing was changed")
            if time.monotonic() >= ends:
                raise LockBusy(
                    f"another refresher has held {name} for {wait:.0f} s: it may have been killed; try again"
                )
            time.sleep(_POLL)
        held = HeldGrant(self.database, self.publisher, lease, self.mirrors, self.notify, self._in_flight, unstored)
        try:
            yield held
        finally:
            try:
                held.release()
            except StorageError:
                self._unreleased.put(held)

    def give_way(self, name: str) -> None:
        """Give back the lease of ``name`` if ``claim_due`` claimed it; it is due again if nobody holds it for long."""
        if (lease := self._claimed.pop(name, None)) is not None:
            with self.database.transaction() as cursor:
                leases.release(cursor, lease, _GIVEN_WAY)

    def importing(self, *, stopping: Callable[[], bool]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Exclude nobody: the database refuses a refresh token under a second name."""
        return nullcontext()

    def expect_imports(self, fingerprints: Collection[str]) -> None:
        """Do nothing: an index finds each refresh token."""

    def stored_under(self, name: str, *, unfinished: bool | None = None) -> Comparison:  # noqa: ARG002
        """Return the record under ``name``."""
        try:
            return Comparison(name, [self.load(name).record])
        except GrantFileError as error:
            return Comparison(name, [], str(error))

    def compare(self, imported: Grant) -> Iterator[Comparison]:
        """Return what is stored under each name that holds, or has spent, the refresh token of ``imported``."""
        with self.database.transaction() as cursor:
            cursor.execute(
                """SELECT name FROM refresher.lease WHERE fingerprint = %(fingerprint)s
                UNION SELECT name FROM refresher.spent WHERE fingerprint = %(fingerprint)s""",
                {"fingerprint": imported.fingerprint()},
            )
            names = [row[0] for row in cursor.fetchall()]
        for name in names:
            yield self.stored_under(name)

    def note_import(self, grant: Grant) -> None:
        """Do nothing: every import compares by an index."""

    def notify(self) -> None:
        """Wake the mirrors of all hosts, at most ten times a second; they find each change in half a second anyway.

        In a transaction of its own: in that of a rotation, commits would run one at a time.
        """
        if (now := time.monotonic()) - self._notified_at > _NOTIFY_INTERVAL:
            self._notified_at = now
            with suppress(StorageError), self.database.transaction() as cursor:
                cursor.execute(f"NOTIFY {CHANNEL}")

    def close(self) -> None:
        """Release what is left, and close the connections."""
        self.release_again()
        self.database.close()
