"""Leases: who may exchange a grant now. A claim opens one, arming allows to send, a release ends it.

An open lease has certainly sent nothing. An armed one may have: when it ends without an answer, the grant is in doubt.
Arming fences the sending; nothing fences the saving of a new refresh token (``settling``).
"""

import uuid
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from refresher.common import clocks
from refresher.common.errors import StorageError
from refresher.storage.postgres.database import Database, UnknownOutcome
from refresher.storage.postgres.moments import Clocks

__all__ = [
    "COLUMNS",
    "EPOCH",
    "FREE",
    "OPENED",
    "TIMELINE",
    "Lease",
    "NotArmed",
    "arm",
    "claim",
    "lease_of",
    "leave",
    "release",
]

_OPEN: Final = 25
_ARMED: Final = 30
"""Seconds: the longest exchange takes 20, and an answer may need time to be saved."""

_LONGEST_WAIT: Final = 300
"""Seconds for which an armed lease stays while the session of its holder is there."""

_MOST_DIFFERENCE: Final = 30.0
_MOST_PAUSE: Final = 2.0

TIMELINE: Final = "left(pg_walfile_name(pg_current_wal_lsn()), 8) || '.' || 'refresher.lease'::regclass::oid"
"""The timeline, and which table this is: a dump that is restored makes another one."""

EPOCH: Final = f"""EXISTS (
    SELECT FROM refresher.epoch e WHERE e.timeline = {TIMELINE}
    AND e.system_identifier = (SELECT system_identifier::text FROM pg_control_system())
    AND e.opens_at <= clock_timestamp())"""  # noqa: S608
"""The condition that this epoch is known and open: a promotion or a restore can have lost leases (``epochs``)."""

FREE: Final = f"""(l.attempt IS NULL OR (l.until < clock_timestamp() AND (
    l.state = 'open' OR l.armed_at < clock_timestamp() - interval '{_LONGEST_WAIT} s' OR NOT EXISTS (
        SELECT FROM pg_stat_activity a WHERE a.pid = l.holder_pid AND a.backend_start = l.holder_start))))"""
"""The condition that a lease can be claimed."""

OPENED: Final = f"""
    attempt = gen_random_uuid(), state = 'open',
    until = clock_timestamp() + interval '{_OPEN} s', next_at = clock_timestamp() + interval '{_OPEN} s',
    doubt_at = CASE WHEN l.state = 'armed' THEN least(l.doubt_at, l.armed_at) ELSE l.doubt_at END,
    armed_at = NULL, holder_pid = %(pid)s, holder_start = %(start)s"""
"""What a claim sets. An open lease that ended sent nothing; an armed one leaves a doubt."""

COLUMNS: Final = """l.name, l.attempt, l.kind, l.grant_id, l.generation, l.fingerprint,
    extract(epoch FROM l.doubt_at)::float8, extract(epoch FROM clock_timestamp())::float8,
    (SELECT system_identifier::text FROM pg_control_system())"""

_CLAIM: Final = (
    f"UPDATE refresher.lease l SET {OPENED} WHERE l.name = %(name)s AND {FREE} AND {EPOCH} RETURNING {COLUMNS}"  # noqa: S608
)

_ARM: Final = f"""UPDATE refresher.lease l SET state = 'armed', armed_at = coalesce(l.armed_at, clock_timestamp()),
    until = clock_timestamp() + interval '{_ARMED} s', next_at = clock_timestamp() + interval '{_ARMED} s'
    WHERE l.name = %s AND l.attempt = %s AND l.grant_id = %s AND l.generation = %s
    AND l.fingerprint IS NOT DISTINCT FROM %s AND l.state = %s AND clock_timestamp() < l.until AND {EPOCH}
    RETURNING 1"""  # noqa: S608

_LOCK: Final = "SELECT 1 FROM refresher.lease WHERE name = %s FOR UPDATE"

_RELEASE: Final = """UPDATE refresher.lease l SET attempt = NULL, state = NULL, armed_at = NULL, until = NULL,
    looked_at = clock_timestamp(),
    next_at = CASE WHEN %(look)s AND EXISTS (
        SELECT FROM refresher.demand d WHERE d.name = l.name AND d.generation = l.generation) THEN clock_timestamp()
    ELSE coalesce(clock_timestamp() + %(delay)s * interval '1 s', 'infinity') END
    WHERE name = %(name)s AND attempt = %(attempt)s AND (state = 'open' OR %(armed)s)"""

_OURS: Final = "SELECT 1 FROM refresher.lease WHERE name = %s AND attempt = %s"

_LEAVE: Final = """UPDATE refresher.lease SET holder_pid = NULL, holder_start = NULL
    WHERE name = %(name)s AND attempt = %(attempt)s"""


class NotArmed(StorageError):
    """The lease was lost, or nobody knows: nothing may be sent."""

    def __init__(self, message: str, *, taken_over: bool = False, may_be_armed: bool = False) -> None:
        super().__init__(message)
        self.taken_over: Final = taken_over
        """Whether another refresher has claimed it since."""
        self.may_be_armed: Final = may_be_armed
        """Whether the lease may be armed all the same: by this call, and by nothing else."""


class Lease(NamedTuple):
    """A lease that this process has claimed, and the columns of its grant at that time."""

    name: str
    attempt: uuid.UUID
    kind: str
    grant_id: str | None
    generation: int
    fingerprint: str | None
    doubt_at: float | None
    """When an armed lease began that ended without an answer, by the database's clock; ``None``: there was none."""
    clocks: Clocks


def lease_of(database: Database, row: tuple[Any, ...]) -> Lease:
    """Return the lease of a row of ``COLUMNS``. Raises ``StorageError`` if the clock of this host is wrong."""
    name, attempt, kind, grant_id, generation, fingerprint, doubt_at, now, server = row
    here = Clocks(clocks.now(), now, server)
    found = Lease(name, attempt, kind, grant_id, generation, fingerprint, doubt_at, here)
    if abs(found.clocks.difference) > _MOST_DIFFERENCE:
        raise StorageError(
            f"the clock of this host differs by {abs(found.clocks.difference):.0f} s from that of {database.place}: "
            "nothing is rotated here until both are set"
        )
    return found


def claim(database: Database, name: str) -> Lease | None:
    """Claim ``name``, also if it has no grant yet. Raises ``StorageError``.

    Return ``None`` if another holds it, or if the server was promoted a few seconds ago.
    """
    pid, start = database.holder() or (None, None)
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO refresher.lease (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
        cursor.execute(_CLAIM, {"name": name, "pid": pid, "start": start})
        if (row := cursor.fetchone()) is not None:
            return lease_of(database, row)  # raising takes the claim back
    return None


def arm(database: Database, lease: Lease, *, again: bool = False) -> None:
    """Allow to send the refresh token that ``lease`` saw; call it when the connection to the server stands.

    ``again``: the same attempt has armed it, and sends once more. Raises ``NotArmed``: then nothing may be sent.
    """
    began = clocks.now().boottime
    try:
        with database.transaction() as cursor:
            state = "armed" if again else "open"
            cursor.execute(
                _ARM, (lease.name, lease.attempt, lease.grant_id, lease.generation, lease.fingerprint, state)
            )
            armed = cursor.fetchone() is not None
            if not armed:
                cursor.execute(_OURS, (lease.name, lease.attempt))
                is_ours = cursor.fetchone() is not None
    except UnknownOutcome as error:
        raise NotArmed(f"{error}; nothing was sent", may_be_armed=not again) from None
    except StorageError as error:
        raise NotArmed(f"{error}; nothing was sent") from None
    if not armed and is_ours:
        raise NotArmed(f"the lease of {lease.name} had ended, or the database was promoted: nothing was sent")
    if not armed:
        raise NotArmed(f"another refresher has taken over {lease.name}: nothing was sent", taken_over=True)
    if clocks.now().boottime - began > _MOST_PAUSE:
        slow = "this process was stopped, or the database was slow: nothing was sent; it is tried again"
        raise NotArmed(slow, may_be_armed=not again)


def release(cursor: Cursor[Any], lease: Lease, delay: float | None, *, look: bool = False, armed: bool = False) -> None:
    """Give ``lease`` back if it is still ours and open; its grant is due in ``delay`` seconds, ``None``: never.

    ``look``: at once, if there is a demand by now. ``armed``: also if it is armed, because only a call of ``arm`` that
    sent nothing can have done that. Otherwise a promotion has, which may have lost what another did (``epochs``).
    """
    cursor.execute(_LOCK, (lease.name,))  # a demand that comes later finds no lease, and makes the grant due
    cursor.execute(
        _RELEASE, {"look": look, "delay": delay, "armed": armed, "name": lease.name, "attempt": lease.attempt}
    )
    cursor.execute("DELETE FROM refresher.lease WHERE name = %s AND kind = 'empty' AND attempt IS NULL", (lease.name,))


def leave(cursor: Cursor[Any], lease: Lease) -> None:
    """Let ``lease`` end by itself, as its refresh token may have been sent; no live holder lengthens it any more."""
    cursor.execute(_LEAVE, {"name": lease.name, "attempt": lease.attempt})
