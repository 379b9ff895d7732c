"""Epochs: which server, timeline and tables these are. A promotion can lose the last commits, and a restore more.

Claims and arming wait for the row of the epoch, and a few seconds more, in which refreshers bring back the leases that
they hold. The refresher that writes the row notes what else may have been lost: leases that are there get a full wait
as if they were armed, and grants that were due since the last heartbeat are in doubt.
"""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import Cursor

from refresher.common.errors import StorageError
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.leases import TIMELINE, Lease

__all__ = ["Heartbeat", "begin_epoch"]

_NOW_ON: Final = f"SELECT (SELECT system_identifier::text FROM pg_control_system()), {TIMELINE}"  # noqa: S608

_BEAT: Final = """UPDATE refresher.epoch SET known_until = clock_timestamp()
    WHERE system_identifier = %s AND timeline = %s AND known_until < clock_timestamp() - interval '0.9 s'"""

_ARMED: Final = """UPDATE refresher.lease SET state = 'armed', armed_at = coalesce(armed_at, %(known)s),
    until = clock_timestamp() + interval '30 s', next_at = clock_timestamp() + interval '30 s'
    WHERE attempt IS NOT NULL"""

_OPENS_AFTER: Final = 40
"""Seconds. Each refresher looks at the epoch each second, and after a fault at the latest after this time."""

_LONGEST: Final = 600.0
"""Seconds: grants by the million are noted."""

_HORIZON: Final = 120
"""Seconds: ``run-once`` under cron rotates what is due before its next run."""

_DOUBTED: Final = """UPDATE refresher.lease l SET doubt_at = least(l.doubt_at, %(known)s)
    WHERE kind = 'grant' AND attempt IS NULL
    AND (next_at <= clock_timestamp() + %(horizon)s * interval '1 s' OR EXISTS (
        SELECT FROM refresher.demand d WHERE d.name = l.name AND d.generation = l.generation))"""

_BRING_BACK: Final = """UPDATE refresher.lease SET attempt = %(attempt)s, state = 'armed', armed_at = clock_timestamp(),
    until = clock_timestamp() + interval '30 s', next_at = clock_timestamp() + interval '30 s',
    holder_pid = NULL, holder_start = NULL
    WHERE name = %(name)s AND kind = 'grant' AND attempt IS NULL AND last_attempt IS DISTINCT FROM %(attempt)s
    AND grant_id = %(grant_id)s AND generation = %(generation)s AND fingerprint IS NOT DISTINCT FROM %(fingerprint)s"""


def begin_epoch(database: Database) -> bool:
    """Write the row of this server and timeline if it is missing; return whether another epoch came before.

    Raises ``StorageError``.
    """
    with database.transaction() as cursor:
        now_on = _now_on(cursor)
        cursor.execute("SELECT 1 FROM refresher.epoch WHERE system_identifier = %s AND timeline = %s", now_on)
        if cursor.fetchone() is not None:
            return False
    with database.transaction(_LONGEST) as cursor:
        cursor.execute("LOCK TABLE refresher.epoch IN SHARE ROW EXCLUSIVE MODE")  # only its owner can hold this up
        cursor.execute("SELECT known_until FROM refresher.epoch ORDER BY since DESC LIMIT 1")
        before = cursor.fetchone()
        cursor.execute(
            """INSERT INTO refresher.epoch (system_identifier, timeline, opens_at)
            VALUES (%s, %s, clock_timestamp() + %s * interval '1 s') ON CONFLICT DO NOTHING""",
            (*now_on, 0 if before is None else _OPENS_AFTER),
        )
        if before is None or cursor.rowcount == 0:
            return False
        cursor.execute(_ARMED, {"known": before[0]})
        cursor.execute(_DOUBTED, {"known": before[0], "horizon": _HORIZON})
    return True


class Heartbeat:
    """Notes once a second that what was committed is known, and refuses a server that was left behind.

    ``in_flight``: the leases that this process has armed.
    """

    def __init__(self, database: Database, in_flight: Mapping[Any, Lease]) -> None:
        self._database = database
        self._in_flight = in_flight
        self._latest: tuple[str, str] | None = None

    def beat(self) -> bool:
        """Note that refresher is alive; return whether an epoch began, in which grants may be in doubt.

        Raises ``StorageError``, also if this server is on an older timeline than one that was seen.
        """
        begin_epoch(self._database)
        with self._database.transaction() as cursor:
            now_on = _now_on(cursor)
            before, line = self._latest, _timeline(now_on)
            if before is not None and before[0] == now_on[0] and line < _timeline(before):
                raise StorageError(
                    f"{self._database.place} is on the timeline {line}, and was on {_timeline(before)}: this is a "
                    "server that another has replaced; point the store to the primary"
                )
            cursor.execute(_BEAT, now_on)
            began = self._latest not in (None, now_on)
            for lease in [*self._in_flight.values()] if began else ():
                cursor.execute(_BRING_BACK, lease._asdict())
        self._latest = now_on
        return began


def _timeline(epoch: tuple[str, str]) -> str:
    """Return the timeline of an epoch, in hex, without its table."""
    return epoch[1].partition(".")[0]


def _now_on(cursor: Cursor[Any]) -> tuple[str, str]:
    cursor.execute(_NOW_ON)
    row = cursor.fetchone()
    return ("", "") if row is None else (row[0], row[1])
