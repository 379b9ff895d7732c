"""Which grants use the new token of another one: they are due when it has one.

Only a hint: a look that was not needed costs one claim, and one that was missed comes with the schedule of the grant.
"""

from typing import Any, Final

from psycopg import Cursor

from refresher.grants.record import Grant, Record
from refresher.grants.sources import awaited

__all__ = ["note", "wake"]

_FORGET: Final = "DELETE FROM refresher.feeds WHERE name = %s AND source <> ALL(%s)"

_NOTE: Final = """INSERT INTO refresher.feeds (source, name) SELECT unnest(%s::text[]), %s ON CONFLICT DO NOTHING"""

_WAKE: Final = """UPDATE refresher.lease SET next_at = least(next_at, clock_timestamp()) WHERE name IN (
    SELECT l.name FROM refresher.feeds f JOIN refresher.lease l USING (name)
    WHERE f.source = %s AND l.kind = 'grant' AND l.attempt IS NULL FOR UPDATE OF l SKIP LOCKED)"""
"""A row that another transaction holds is not waited for: a new refresh token is stored in this one."""


def note(cursor: Cursor[Any], record: Record) -> None:
    """Note for which new tokens ``record`` waits now."""
    if isinstance(record, Grant) and record.assertion is not None:
        sources = list(awaited(record))
        cursor.execute(_FORGET, (record.name, sources))
        cursor.execute(_NOTE, (sources, record.name))


def wake(cursor: Cursor[Any], name: str) -> None:
    """Make the grants that wait for a new token of ``name`` due."""
    cursor.execute(_WAKE, (name,))
