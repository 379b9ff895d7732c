"""A grant in the database while this process has its lease: the steps of a rotation (``store.Held``)."""

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import msgspec
from psycopg import Cursor

from refresher.common import clocks
from refresher.common.errors import GrantFileError, ImportRefused, LockBusy, StorageError
from refresher.grants import policy, transition
from refresher.grants.encoding import encode, open_secrets
from refresher.grants.generations import can_be_later, last_known
from refresher.grants.record import NO_RECORD, Doubt, Grant, Record, Stored, Tombstone
from refresher.storage import lock
from refresher.storage import sealing as copies
from refresher.storage.postgres import leases, sealing, settling, spills
from refresher.storage.postgres.attempt import PostgresAttempt, read_clocks
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.leases import Lease
from refresher.storage.postgres.moments import Clocks
from refresher.storage.postgres.spills import Unstored
from refresher.storage.publishing import Publisher, published_generation, read_published
from refresher.storage.store import Demanded, Report, ignore_report
from shim._source import EXPIRING
from shim._token import TokenFile

__all__ = ["HeldGrant"]

log = logging.getLogger(__name__)

_AFTER_FAULT: Final = 60.0
"""Seconds until a grant is looked at again whose record cannot be read."""

_LEAST: Final = 1.0
"""Seconds until the next attempt, at the least."""

_AFTER_SLOW: Final = 5.0
"""The same, after an attempt that sent nothing because of the database."""


class HeldGrant:
    """The grant of one name; ``lease`` is ours until it ends. ``unstored``: its spills on this host."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        lease: Lease,
        mirrors: Callable[[str], bool],
        notify: Callable[[], None],
        in_flight: dict[uuid.UUID, Lease],
        unstored: Sequence[Unstored] = (),
    ) -> None:
        self._notify = notify
        self._in_flight = in_flight
        self._unstored = unstored
        self._database = database
        self._publisher = publisher
        self._directories = publisher.directories
        self._keys = publisher.directories.keys
        self._lease = lease
        self._name = lease.name
        self._mirrors = mirrors
        self._attempt: PostgresAttempt | None = None
        self._stored = Stored(None, NO_RECORD)
        self._demanded = self._recovered = self._wrote = False
        self._after_fault = _AFTER_FAULT
        self.before: Record | None = None
        """The record as ``recover`` found it."""

    def recover(
        self,
        *,
        unfinished: bool = False,  # noqa: ARG002  files need it
        giving_up: bool = False,
        removing: bool = False,
        report: Report = ignore_report,
    ) -> Stored:
        """Note a doubt that an earlier holder left, and recognise a restored database.

        ``giving_up``: what cannot be opened is set aside: the record in the table of orphans, spills on this host.
        Raises ``GrantFileError`` for a record that cannot be read, and ``StorageError``.
        """
        given_up: list[str] = []
        lost = None
        for each in () if giving_up else self._unstored:
            if each.concerns(self._lease.grant_id, self._lease.generation):
                self._after_fault = 0.0  # another host may rotate it
                raise GrantFileError(each.problem)
        if self._unstored and giving_up:
            for error, aside in spills.set_aside_unreadable(self._directories, self._name):
                where = "deleted with the grant" if removing else f"now {aside}"
                given_up.append(f"{error}; it is {where}")
                log.warning("%s: %s", self._name, given_up[-1])
        if giving_up:
            self._directories.keys.known()  # before a row is locked: a source of keys can be slow
        # Before the record: another can store an answer at any time, and this host can publish it.
        own = read_published(self._directories, self._name)
        with self._database.transaction() as cursor:
            now = read_clocks(cursor)
            stored = settling.load(cursor, self._name, now, self._keys)
            self.before = stored.record
            cursor.execute(
                """SELECT generation, issued_at, expires_at FROM refresher.seen s
                WHERE s.name = %s AND s.grant_id = %s""",
                (self._name, self._lease.grant_id),
            )
            seen = cursor.fetchone()
            changed = grant = stored.record
            findings = []
            if giving_up and (problem := _problem_of(grant)) is not None:
                self._require_lease(cursor)
                where = "deleted with the grant" if removing else self._keep_record(cursor, "it could not be opened")
                lost = f"the record cannot be opened: {problem}; it is {where}"
            if isinstance(grant, Grant):
                if self._lease.doubt_at is not None:
                    doubt = Doubt(since=now.at(self._lease.doubt_at))
                    grant = transition.mark_interrupted(grant, transition.INTERRUPTED, doubt=doubt, now=now.here)
                    findings.append(transition.INTERRUPTED)
                for generation, lifetime in _later(grant, own, seen, now):
                    grant = transition.mark_restored(grant, generation, lifetime, now=now.here)
                    findings.append("" if grant.failure is None else grant.failure.description)
                grant = transition.with_doubt_restarted(grant, now.here)
            if isinstance(grant, Grant) and grant is not changed:
                self._require_lease(cursor)
                try:
                    stored = settling.write(cursor, stored, grant, now, self._keys)
                except GrantFileError:  # of encoding it: nothing is written
                    if not giving_up:
                        raise
                    stored = Stored(grant, stored.checksum)  # what is known of it counts until it is replaced
                # Read by the lease: what arming compares.
                self._lease = self._lease._replace(generation=grant.generation)
            if seen is not None:
                cursor.execute(
                    "DELETE FROM refresher.seen s USING refresher.lease l WHERE s.name = l.name AND s.name = %s "
                    "AND (s.generation = %s OR s.generation <= l.generation OR s.grant_id <> l.grant_id)",
                    (self._name, seen[0]),
                )
        if lost is not None:
            log.warning("%s: %s", self._name, lost)
            given_up.append(lost)
        for finding in (*given_up, *findings):
            report(finding, None if stored.record is None else stored.record.generation)
        self._stored, self._recovered = stored, True
        return stored

    def replace_damaged(self, report: Report = ignore_report) -> tuple[Stored, str]:  # noqa: ARG002  nothing to settle
        """Keep the bytes of a record that cannot be read, and return what its columns say of it."""
        with self._database.transaction() as cursor:
            self._require_lease(cursor)
            where = self._keep_record(cursor, "it could not be read")
            cursor.execute("SELECT fingerprint FROM refresher.spent WHERE name = %s", (self._name,))
            spent = tuple(row[0] for row in cursor.fetchall())
            now = read_clocks(cursor)
            known = (*spent, *([] if self._lease.fingerprint is None else [self._lease.fingerprint]))
            tombstone = Tombstone(
                name=self._name,
                grant_id=self._lease.grant_id or "",
                generation=self._lease.generation,
                begun_from=NO_RECORD,
                removed_at=now.here.wall,
                scope=None,
                origins=(),
                spent=known,
            )
        self._stored = Stored(tombstone, NO_RECORD)
        return self._stored, where

    def _keep_record(self, cursor: Cursor[Any], why: str) -> str:
        """Keep the bytes of the record in the table of orphans, and return where they are."""
        attempt = uuid.uuid4()
        cursor.execute(
            """INSERT INTO refresher.orphan (attempt, name, fingerprint, bytes, why)
            SELECT %s, r.name, l.fingerprint, r.bytes, %s
            FROM refresher.record r JOIN refresher.lease l USING (name) WHERE r.name = %s""",
            (attempt, f"a record that was replaced: {why}", self._name),
        )
        return f"in the table refresher.orphan ({attempt})"

    def demanded(self, grant: Grant, listed: Collection[int]) -> Demanded:  # noqa: ARG002  files need it
        """Return the demands of all hosts for ``grant``."""
        with self._database.transaction() as cursor:
            cursor.execute("SELECT generation, reason FROM refresher.demand WHERE name = %s", (self._name,))
            rows = dict(cursor.fetchall())
        current = range(grant.generation, grant.generation + 1)
        reason = rows.get(grant.generation)
        self._demanded = grant.generation in rows
        return Demanded(
            generations=frozenset(rows),
            current=current,
            counts=self._demanded,
            reason=lambda: reason if reason in (EXPIRING, *grant.origins) else None,
        )

    def begin(self, stored: Stored, grant: Grant, on_sent: Callable[[], None]) -> PostgresAttempt:  # noqa: ARG002
        """Begin an attempt; the claim has declared it. Raises ``KeyUnavailable``: then nothing is sent."""
        # Opens the grant, and loads the keys of the next record: after the request nothing of this may fail.
        encode(grant, self._keys)
        self._keys.published.current()
        self._attempt = PostgresAttempt(self._database, self._directories, self._lease, grant, on_sent, self._in_flight)
        return self._attempt

    def changed_meanwhile(self, stored: Stored) -> Grant | None:  # noqa: ARG002
        """Return ``None``: ``persist`` compares, in the transaction that stores."""
        return None

    def backup_hint(self, grant: Grant) -> str:  # noqa: ARG002
        """Return nothing: the database knows no time of a file."""
        return ""

    def write(self, stored: Stored, record: Record) -> Stored:
        """Replace the record while the lease is ours. Raises ``StorageError`` and ``ImportRefused``."""
        with self._database.transaction() as cursor:
            self._require_lease(cursor)
            now = read_clocks(cursor)
            fingerprint = None if isinstance(record, Tombstone) else record.fingerprint()
            cursor.execute(
                "SELECT name FROM refresher.spent WHERE fingerprint = %s AND name <> %s", (fingerprint, self._name)
            )
            if (row := cursor.fetchone()) is not None:
                raise ImportRefused(f"{row[0]} has already spent this refresh token: log in again under this name")
            self._stored = settling.write(cursor, stored, record, now, self._keys)
            settling.note_spent(cursor, record)
        self._wrote = True
        return self._stored

    def note(self, grant: Grant, *, end_warned: float) -> None:
        """Write ``end_warned`` into the record, if it is of the generation of ``grant``."""
        with self._database.transaction() as cursor:
            now = read_clocks(cursor)
            stored = settling.load(cursor, self._name, now, self._keys, lock=True)
            there = stored.record
            if isinstance(there, Grant) and (there.grant_id, there.generation) == (grant.grant_id, grant.generation):
                noted = msgspec.structs.replace(there, end_warned=end_warned)
                self._stored = settling.write(cursor, stored, noted, now, self._keys, keeps_doubt=True)

    def delete_copies(self) -> None:
        """Delete what may hold refresh tokens of a removed grant besides its record."""
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM refresher.orphan WHERE name = %s", (self._name,))
        copies.delete_copies(self._directories, self._name, spills=False)

    def reseal(self, stored: Stored, *, only_published: bool = False) -> int:
        """Bring the record, what is published and what is kept to the form that is configured."""
        with self._database.transaction() as cursor:
            self._require_lease(cursor)
            now = read_clocks(cursor)
            changed, self._stored, problem = sealing.reseal(
                cursor, stored, self._name, now, self._keys, only_published=only_published
            )
        self._wrote = changed > 0
        if not only_published:
            changed += copies.reseal_copies(self._directories, self._name)
        if problem is not None:
            raise problem
        return changed

    def seen_generation(self, record: Record | None) -> int:
        """Return the generation of the token file of this host, as far as it proves what was published."""
        return published_generation(self._directories, self._name, record)

    def is_stale(self, record: Record) -> bool:
        """Whether the readers of this host do not see ``record``."""
        return self._mirrors(self._name) and self._publisher.is_stale(record)

    def publish(self, record: Record, *, again: bool = False) -> bool:
        """Write the token file of this host, if it mirrors the name; other hosts read the database."""
        self._notify()
        if not self._mirrors(self._name):
            return True
        try:
            with lock.held(self._directories.publish_lock, stopping=lambda: False):
                return self._publisher.publish(record, again=again)
        except LockBusy as error:
            raise StorageError(f"cannot publish {self._name}: {error}") from None

    def remove_demands(self, generations: Collection[int] | None, *, keep: range, warned: set[str]) -> None:  # noqa: ARG002
        """Remove the demands of all hosts for ``generations``, or all; each host removes its own files."""
        with self._database.transaction() as cursor:
            if generations is None:
                cursor.execute("DELETE FROM refresher.demand WHERE name = %s", (self._name,))
                return
            settled = [each for each in generations if each not in keep]
            cursor.execute(
                "DELETE FROM refresher.demand WHERE name = %s AND generation = ANY(%s)", (self._name, settled)
            )

    def release(self, *, again: bool = False) -> None:
        """Give the lease back; if the refresh token may have been sent, only let it end by itself.

        ``again``: do not wait for a row that another process has locked. Raises ``StorageError``: then try again.
        """
        attempt = self._attempt
        if attempt is not None and attempt.ended:
            return
        with self._database.transaction() as cursor:
            if again:
                cursor.execute("SET LOCAL lock_timeout = '200ms'")
            if attempt is not None and attempt.may_have_sent:
                leases.leave(cursor, self._lease)
                return
            delay = self._delay(cursor) if self._recovered else self._after_fault
            look = self._recovered and not self._demanded
            armed = attempt is not None and attempt.may_have_armed
            leases.release(cursor, self._lease, delay, look=look, armed=armed)

    def _delay(self, cursor: Cursor[Any]) -> float | None:
        """Return in how many seconds somebody must look at the grant; ``None``: after a person or an agent acts."""
        record, now = self._stored.record, self._lease.clocks._replace(here=clocks.now())
        renewed = settling.has_newer_source(cursor, record, now, self._keys)
        delay = settling.delay_of(record, now, demanded=self._demanded, renewed=renewed)
        if delay is None or self._wrote:
            return delay
        # What is due and was not done here was interrupted, or the database was too slow for it.
        return max(delay, _LEAST if self._attempt is None else _AFTER_SLOW)

    def _require_lease(self, cursor: Cursor[Any]) -> None:
        cursor.execute(
            "SELECT 1 FROM refresher.lease WHERE name = %s AND attempt = %s FOR UPDATE",
            (self._name, self._lease.attempt),
        )
        if cursor.fetchone() is None:
            raise StorageError(f"another refresher has taken over {self._name}: nothing was changed here; try again")


def _problem_of(record: Record | None) -> GrantFileError | None:
    """Return why the secrets of ``record`` cannot be opened, or ``None``."""
    try:
        open_secrets(record)
    except GrantFileError as error:
        return error
    return None


def _later(
    grant: Grant, own: TokenFile | None, seen: tuple[int, float | None, float | None] | None, now: Clocks
) -> Iterator[tuple[int, tuple[float, float | None] | None]]:
    """Return the latest generation beyond that of ``grant`` that a host has, with the times of its token.

    ``own``: the token file of this host. ``seen``: the latest report of a host, which may report any generation.
    """
    if own is None or own.grant_id != grant.grant_id:
        own = None
    found = []
    if own is not None and own.generation > grant.generation:
        found.append((own.generation, None if own.access_token is None else (own.issued_at, own.expires_at)))
    if seen is not None and seen[0] > max(grant.generation, -1 if own is None else own.generation):
        found.append((seen[0], None if seen[1] is None else _within(grant, now, seen[1], seen[2])))
    yield from (each for each in found[-1:] if can_be_later(each[0], *last_known(grant), now.here.wall))


def _within(grant: Grant, now: Clocks, issued_at: float, expires_at: float | None) -> tuple[float, float | None]:
    """Return the times of a reported token, within the life of those of ``grant``.

    A host may report any time, and again: a further report makes the wait for the first one no longer.
    """
    longest = policy.DEFAULT_MAX_AGE if grant.expires_at is None else max(grant.expires_at - grant.issued_at, 0.0)
    restored = grant.doubt is not None and grant.doubt.restored
    begins = grant.doubt.since.wall if grant.doubt is not None and restored else now.here.wall
    issued_at = min(issued_at, begins)
    if expires_at is None:
        return issued_at, None
    expires_at = min(expires_at, begins + longest)
    return max(issued_at, expires_at - longest), expires_at
