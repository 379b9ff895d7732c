"""Claim what is due: fair across authorization servers, and within the budget that all refreshers share for each.

One short transaction. Rows that another refresher is claiming are skipped and never waited for. The lease of a holder
that died is found like a grant that is due: a claim moves ``next_at`` to the end of the lease.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, cast

from psycopg import sql

from refresher.storage.postgres.database import Database
from refresher.storage.postgres.leases import COLUMNS, EPOCH, FREE, OPENED, Lease, lease_of
from refresher.storage.postgres.spills import Unstored

__all__ = ["claim_due", "count_due"]

_RATE: Final = 20
"""Requests per second to one server, from all refreshers together."""

_BURST: Final = 40
"""Requests to one server at once, when there were none for a while."""

_SERVERS: Final = 128
"""How many servers one claim serves; which ones is random, so that none waits for long."""

_HEAD: Final = 1000
"""The servers of so many grants that are due first are considered; all servers only if more grants are due."""

# The bucket of a server: when it is full again, counted in requests at the rate, as in ``work_queue.RateLimit``.
_NOW: Final = f"extract(epoch FROM clock_timestamp()) * {_RATE}"

_DUE: Final = "l.next_at <= coalesce(%(until)s::timestamptz, now()) AND l.next_at < 'infinity'"
"""The condition that uses the indexes: without its second part, each claim would read all grants."""

_UNSPILLED: Final = """NOT EXISTS (
    SELECT FROM unnest(%(spilled)s::text[], %(spilled_ids)s::text[], %(spilled_generations)s::bigint[])
        AS spilled (name, grant_id, generation)
    WHERE spilled.name = l.name
    AND coalesce(spilled.grant_id = l.grant_id AND spilled.generation = l.generation, true))"""
"""The condition that no spill of this host may hold the successor of the grant (``Unstored.concerns``)."""

_CLAIM: Final = f"""WITH busy AS (
    SELECT * FROM unnest(%(servers)s::text[], %(rooms)s::integer[]) AS busy (origin, room)
), head AS MATERIALIZED (
    SELECT l.server FROM refresher.lease l WHERE {_DUE} AND l.kind = 'grant' ORDER BY l.next_at LIMIT {_HEAD}
), candidate AS (
    SELECT h.server AS origin FROM head h
    UNION SELECT s.origin FROM refresher.server s WHERE (SELECT count(*) FROM head) = {_HEAD}
        AND EXISTS (SELECT FROM refresher.lease l WHERE l.server = s.origin AND {_DUE} AND l.kind = 'grant')
), chosen AS MATERIALIZED (
    SELECT s.origin,
        least(coalesce(b.room, %(each)s), floor({_BURST} - greatest(s.full_at - {_NOW}, 0)))::integer AS room
    FROM refresher.server s JOIN candidate USING (origin) LEFT JOIN busy b USING (origin)
    WHERE s.held_until <= clock_timestamp() AND coalesce(b.room, 1) > 0 AND s.full_at - {_NOW} <= {_BURST} - 1
    ORDER BY random() LIMIT {_SERVERS} FOR UPDATE OF s SKIP LOCKED
), due AS MATERIALIZED (
    SELECT found.name FROM chosen c CROSS JOIN LATERAL (
        SELECT l.name FROM refresher.lease l
        WHERE l.server = c.origin AND {_DUE} AND l.kind = 'grant'
            AND (l.key_id = '' OR l.key_id = ANY(%(key_ids)s::text[])) AND {_UNSPILLED}
            AND {FREE} AND {EPOCH} AND l.looked_at < coalesce(%(before)s::timestamptz, 'infinity')
        ORDER BY l.next_at LIMIT c.room FOR UPDATE SKIP LOCKED
    ) found LIMIT %(most)s
), claimed AS (
    UPDATE refresher.lease l SET {OPENED} FROM due WHERE l.name = due.name RETURNING {COLUMNS}, l.server AS origin
), counted AS (
    UPDATE refresher.server s SET full_at = greatest(s.full_at, {_NOW}) + taken.number
    FROM (SELECT origin, count(*) AS number FROM claimed GROUP BY origin) taken WHERE s.origin = taken.origin
)
SELECT * FROM claimed"""  # noqa: S608


def claim_due(
    database: Database,
    most: int,
    *,
    each: int,
    rooms: Mapping[str, int],
    key_ids: Collection[str],
    unstored: Collection[Unstored] = (),
    until: datetime | None = None,
    before: datetime | None = None,
) -> list[tuple[Lease, str]]:
    """Claim up to ``most`` grants that are due now, or ``until`` a time; return each lease with its server.

    ``each``: how many of one server; ``rooms``: how many of a server that is busy here. ``key_ids``: of
    the keys of this host, which can use no other grants that are sealed. ``unstored``: the spills of
    this host, whose grants another host may rotate. ``before``: only grants that
    nobody has held since that time of the database. Raises ``StorageError``.
    """
    pid, start = database.holder() or (None, None)
    with database.transaction() as cursor:
        cursor.execute(
            sql.SQL(cast("Any", _CLAIM)),
            {
                "servers": list(rooms),
                "rooms": list(rooms.values()),
                "each": each,
                "most": most,
                "key_ids": list(key_ids),
                **_columns(unstored),
                "until": until,
                "before": before,
                "pid": pid,
                "start": start,
            },
        )
        return [(lease_of(database, found[:-1]), found[-1]) for found in cursor.fetchall()]


def count_due(
    database: Database, until: datetime, before: datetime, key_ids: Collection[str], unstored: Collection[Unstored] = ()
) -> int:
    """Return how many grants are due until a time, free, and not looked at since another. Raises ``StorageError``.

    Those of a server that is busy for long do not count, nor those that are sealed with none of the keys ``key_ids``,
    nor those of which a spill of this host is ``unstored``.
    """
    with database.transaction() as cursor:
        cursor.execute(
            f"""SELECT count(*) FROM refresher.lease l JOIN refresher.server s ON s.origin = l.server
            WHERE l.next_at <= %(until)s AND l.next_at < 'infinity' AND l.kind = 'grant'
            AND l.looked_at < %(before)s AND {FREE} AND {_UNSPILLED}
            AND s.held_until <= clock_timestamp() + interval '5 s'
            AND (l.key_id = '' OR l.key_id = ANY(%(key_ids)s::text[]))""",  # noqa: S608
            {"until": until, "before": before, "key_ids": list(key_ids), **_columns(unstored)},
        )
        row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def _columns(unstored: Collection[Unstored]) -> dict[str, list[Any]]:
    return {
        "spilled": [each.name for each in unstored],
        "spilled_ids": [each.grant_id for each in unstored],
        "spilled_generations": [each.generation for each in unstored],
    }
