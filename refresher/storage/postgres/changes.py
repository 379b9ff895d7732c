"""What other hosts have published: the token files in the database, and what a host says to it.

A mirror needs few rights: it reads ``name``, ``generation``, ``published`` and ``xid`` of ``record``, and inserts into
``demand`` and ``seen``.
"""

import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Cursor

from refresher.common.errors import StorageError
from refresher.storage.postgres.database import Database, Link
from refresher.storage.postgres.leases import TIMELINE
from shim._token import TokenFile

__all__ = ["CHANNEL", "Changes", "Copy", "Listener", "demand", "generation_of", "report_seen"]

CHANNEL: Final = "refresher_changed"

_CHUNK: Final = 2000
_CHECK_INTERVAL: Final = 5.0
_LONGEST_PAUSE: Final = 30.0

_NOW_ON: Final = f"""SELECT pg_snapshot_xmin(pg_current_snapshot())::text,
    (SELECT system_identifier::text FROM pg_control_system()) || {TIMELINE} || pg_postmaster_start_time()"""  # noqa: S608
"""With the second, all is read again after a promotion, and after a restore of a dump or of the data directory."""

_ALL: Final = """SELECT name, generation, published FROM refresher.record
    WHERE name > %s AND published IS NOT NULL ORDER BY name LIMIT %s"""

_CHANGED: Final = """SELECT name, generation, published FROM refresher.record
    WHERE xid >= %s::text::xid8 AND xid < pg_snapshot_xmax(pg_current_snapshot()) AND published IS NOT NULL"""
"""The second condition leaves out what a dump has brought from a server with later numbers."""

_OF_NAMES: Final = """SELECT name, generation, published FROM refresher.record
    WHERE name = ANY(%s) AND published IS NOT NULL"""

_SEEN: Final = """INSERT INTO refresher.seen AS s (name, grant_id, generation, issued_at, expires_at, host)
    VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"""


class Copy(NamedTuple):
    """The token file of a grant, as the database has it."""

    name: str
    generation: int
    data: bytes


class Changes:
    """Reads what has changed in the database since the last time: all, the first time.

    A cursor by time or by number would miss what is committed late. So this reads what was written by transactions that
    had not ended at the last reading, some of it twice. After a promotion, a restart or a restore it reads all again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since: str | None = None
        self._server = ""

    def read(self) -> tuple[bool, Iterator[Copy]]:
        """Return whether all follows, or only what has changed; and it. Raises ``StorageError``, also in between."""
        with self._database.transaction() as cursor:
            cursor.execute(_NOW_ON)
            row = cursor.fetchone()
            xmin, server = ("0", "") if row is None else (row[0], row[1])
            if self._since is not None and server == self._server:
                cursor.execute(_CHANGED, (self._since,))
                changed = _copies(cursor)
                self._since = xmin
                return False, iter(changed)
        return True, self._all(xmin, server)

    def of(self, names: Collection[str]) -> list[Copy]:
        """Return the token files of ``names``. Raises ``StorageError``."""
        with self._database.transaction() as cursor:
            cursor.execute(_OF_NAMES, (list(names),))
            return _copies(cursor)

    def _all(self, xmin: str, server: str) -> Iterator[Copy]:
        last = ""
        while True:
            with self._database.transaction() as cursor:
                cursor.execute(_ALL, (last, _CHUNK))
                found = _copies(cursor)
            yield from found
            if len(found) < _CHUNK:
                break
            last = found[-1].name
        self._since, self._server = xmin, server  # only once all was read


def _copies(cursor: Cursor[Any]) -> list[Copy]:
    return [Copy(name, generation, bytes(data)) for name, generation, data in cursor.fetchall()]


def generation_of(database: Database, name: str) -> int:
    """Return the generation of ``name`` in the database now; -1 if there is none. Raises ``StorageError``."""
    with database.transaction() as cursor:
        cursor.execute("SELECT generation FROM refresher.record WHERE name = %s", (name,))
        row = cursor.fetchone()
    return -1 if row is None else int(row[0])


def demand(database: Database, name: str, generation: int, reason: str | None) -> None:
    """Demand another token than that of ``generation``, with what the demand holds. Raises ``StorageError``."""
    with database.transaction() as cursor:
        cursor.execute(
            "INSERT INTO refresher.demand (name, generation, reason) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (name, generation, reason),
        )


def report_seen(database: Database, token: TokenFile) -> None:
    """Report the token file of this host, which is later than the record: the database was restored."""
    issued_at = None if token.access_token is None else token.issued_at
    values = (token.name, token.grant_id, token.generation, issued_at, token.expires_at, socket.gethostname()[:200])
    with database.transaction() as cursor:
        cursor.execute(_SEEN, values)


class Listener:
    """Calls ``wake`` when a refresher notifies of a change; ``run`` is for a thread of its own.

    It only saves time: a poll finds each change, also behind a pooler, where nothing is heard.
    """

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._stopped = False

    def stop(self) -> None:
        """End ``run`` within a few seconds."""
        self._stopped = True

    def run(self) -> None:
        """Listen until ``stop``; a connection that is cut is replaced. It never raises."""
        pause = 1.0
        while not self._stopped:
            link: Link | None = None
            with suppress(StorageError, psycopg.Error):
                link = self._database.connect()
                with self._database.watched(link):
                    link.connection.execute(f"LISTEN {CHANNEL}")
                self._wake()  # what came before
                while not self._stopped:
                    pause = 1.0
                    for _ in link.connection.notifies(timeout=_CHECK_INTERVAL, stop_after=1):
                        self._wake()
                    with self._database.watched(link):
                        link.connection.execute("SELECT 1")  # notices a connection that was cut
            if link is not None:
                link.close()
            if not self._stopped:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
