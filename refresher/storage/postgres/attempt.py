"""One attempt at the next record of a grant in the database: arm, then save what the answer was, whatever happens."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from psycopg import Cursor

from refresher.common import clocks
from refresher.common.errors import GrantFileError, ImportRefused, KeyUnavailable, StorageError
from refresher.grants.encoding import encode_kept, open_secrets
from refresher.grants.record import Grant
from refresher.storage import files
from refresher.storage.directories import Directories
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import leases, settling, spills
from refresher.storage.postgres.database import Database, DatabaseAway, UnknownOutcome
from refresher.storage.postgres.leases import Lease
from refresher.storage.postgres.moments import Clocks
from refresher.storage.postgres.settling import Sent
from refresher.storage.postgres.spills import Unstored

__all__ = ["PostgresAttempt", "commit_spills", "read_clocks"]

_SPILL_AFTER: Final = 2.0
_LONGEST_PAUSE: Final = 10.0
_ONLY_OURS: Final = 20.0
"""Seconds after the begin of an attempt within which no other can have its lease."""

_DOES_NOT_FIT: Final = "does not fit the grant that is stored: it is kept in the table refresher.orphan"

log = logging.getLogger(__name__)


class PostgresAttempt:
    """One attempt, for the grant that ``lease`` saw."""

    def __init__(
        self,
        database: Database,
        directories: Directories,
        lease: Lease,
        grant: Grant,
        on_sent: Callable[[], None],
        in_flight: dict[uuid.UUID, Lease],
    ) -> None:
        self._in_flight = in_flight
        self._database = database
        self._directories = directories
        self._lease = lease
        self._grant = grant
        self._on_sent = on_sent
        self._sent = Sent(lease.attempt, grant.name, grant.grant_id, grant.generation, grant.fingerprint())
        self._armed = self._spilled = False
        self._not_armed: leases.NotArmed | None = None
        self._began = clocks.now().boottime
        self._spilling = threading.Lock()
        self.ended = False
        """Whether the lease needs no release: it is settled, or a spill of this host will settle it."""

    def before_first_byte(self) -> None:
        """Arm the lease. Raises ``NotArmed``: then nothing may be sent."""
        try:
            leases.arm(self._database, self._lease, again=self._armed)
        except leases.NotArmed as error:
            self._not_armed = error
            raise
        self._armed = True
        self._in_flight[self._lease.attempt] = self._lease
        self._on_sent()

    def persist(self, record: Grant, *, until_saved: bool) -> Grant:
        """Settle the attempt; a new token is spilled on this host if the database does not take it in 2 s.

        Return the grant that is stored then: another one if this outcome does not count any more. Raises
        ``StorageError`` if nothing was sent because of the database: that is no failure of the grant.
        """
        if self._not_armed is not None and not self._armed and not self._not_armed.taken_over:
            raise self._not_armed
        watchdog = threading.Timer(_SPILL_AFTER, self._spill, (record,))
        if until_saved:
            watchdog.daemon = True
            watchdog.start()
        try:
            return self._settle(record, until_saved=until_saved)
        finally:
            watchdog.cancel()
            self._in_flight.pop(self._lease.attempt, None)

    def _settle(self, record: Grant, *, until_saved: bool) -> Grant:
        pause, gives_up = 0.1, time.monotonic() + _LONGEST_PAUSE
        while True:
            try:
                there = _settle(self._database, self._directories.keys, self._sent, record, issued=until_saved)
            except (StorageError, GrantFileError) as error:
                if not until_saved and not isinstance(error, UnknownOutcome):
                    raise
                if until_saved and self._spill(record):
                    self.ended = True
                    log.warning(
                        "%s: the database does not take a new token: %s; it is saved in %s, and a refresher of this "
                        "host stores it when the database is back",
                        record.name,
                        error,
                        self._directories.grants,
                    )
                    return record
                if until_saved:
                    log.critical(
                        "%s: NOT SAVED YET: make room in %s, or start %s; this process holds the only copy of a new "
                        "refresh token",
                        record.name,
                        self._directories.grants,
                        self._database.place,
                    )
                elif time.monotonic() > gives_up:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self.ended = True
            # While the watchdog saves it, it is left: the next look at it finds that it is stored.
            if self._spilling.acquire(blocking=False):
                if self._spilled:
                    spills.remove(self._directories, self._sent)
                self._spilling.release()
            if there is not None and until_saved and there.generation < record.generation:
                log.warning("%s: the new token %s", record.name, _DOES_NOT_FIT)
            return there if isinstance(there, Grant) else record

    def _spill(self, record: Grant) -> bool:
        with self._spilling:
            if not (self._spilled or self.ended):
                with suppress(OSError):
                    spills.save(self._directories, self._sent, record)
                    self._spilled = True
            return self._spilled

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep an answer that could not be read; return a sentence that says where it is, or that it is lost."""
        kept = encode_kept(self._grant.name, answer, self._directories.keys)
        try:
            with self._database.transaction() as cursor:
                settling.keep_orphan(cursor, self._sent, kept, f"an answer at {at:.0f} that could not be read")
            return "it is kept in the table refresher.orphan"
        except StorageError:
            pass
        path = files.unused(self._directories.grants / f"{self._grant.name}.answer", int(at))
        try:
            files.durable_create(path, kept)
            files.sync_directory(path.parent)
        except OSError:
            return "it could not be kept"
        return f"it is kept as {path}"

    @property
    def may_have_sent(self) -> bool:
        """Whether the refresh token may have been sent."""
        return self._armed

    @property
    def may_have_armed(self) -> bool:
        """Whether the lease may be armed by this attempt alone, although it sent nothing."""
        # Later, another may have had the lease, and a promotion may have lost it and armed it again.
        recent = clocks.now().boottime - self._began < _ONLY_OURS
        return recent and self._not_armed is not None and self._not_armed.may_be_armed and not self._armed

    def abandon(self) -> None:
        """Take nothing back: the release of the grant does."""
        self.close()

    def close(self) -> None:
        """Leave the lease: when it ends, the grant is in doubt if the refresh token may have been sent."""
        self._in_flight.pop(self._lease.attempt, None)


def commit_spills(database: Database, directories: Directories, name: str | None = None) -> list[Unstored]:
    """Store the spills of this host, of ``name`` or of all names; return those that cannot be stored.

    Raises ``StorageError`` if the database does not take one.
    """
    left: list[Unstored] = []
    for path in spills.find(directories, name):
        found = Unstored(path.name.rsplit(".", 2)[0], "")
        try:
            sent, record = spills.read(directories, path)
            found = Unstored(sent.name, "", sent.grant_id, sent.generation)
            open_secrets(record)  # before a row is locked, as the next: a source of keys can be slow
            directories.keys.load()
            there = _settle(database, directories.keys, sent, record, issued=True)
        except FileNotFoundError:
            continue  # another process has stored it
        except (DatabaseAway, GrantFileError, OSError, ValueError) as error:
            if isinstance(error, DatabaseAway) and not error.refuses_data:
                raise
            is_whole = isinstance(error, DatabaseAway | KeyUnavailable)
            if path.suffix == spills.INCOMPLETE and not is_whole:
                spills.set_aside_if_cut_off(path)
            else:
                left.append(found._replace(problem=f"{path}: {error}"))
            continue
        spills.remove(directories, sent)
        path.unlink(missing_ok=True)
        if there is None or there.generation < record.generation:
            log.warning("%s: a token that had been saved in %s %s", sent.name, path, _DOES_NOT_FIT)
        else:
            log.warning("%s: stored a token that had been saved in %s", sent.name, path)
    return left


def _settle(
    database: Database, keys: KeyRing, sent: Sent, record: Grant, *, issued: bool, of_another: bool = False
) -> Grant | None:
    try:
        with database.transaction() as cursor:
            now = read_clocks(cursor)
            there = settling.settle(cursor, sent, record, now, keys, issued=issued, of_another=of_another)
    except ImportRefused:
        if of_another:
            raise
        return _settle(database, keys, sent, record, issued=issued, of_another=True)
    return there if isinstance(there, Grant) else None


def read_clocks(cursor: Cursor[Any]) -> Clocks:
    """Return this instant by the clocks of this host and of the database."""
    cursor.execute(
        """SELECT extract(epoch FROM clock_timestamp())::float8,
        (SELECT system_identifier::text FROM pg_control_system())"""
    )
    row = cursor.fetchone()
    return Clocks(clocks.now(), *(row or (0.0, "")))
