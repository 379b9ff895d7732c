"""The history: events in an SQLite database of the state directory, bounded in age and size.

It is a log and no source of truth: it may lose events, and it begins anew if it is damaged. Several processes write it
at once. It never takes the lock of a grant.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from refresher.observers import history_file
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from refresher.storage.directories import Directories

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["FREE", "Follower", "History", "is_known", "little_space", "read"]

FREE: Final = 200 * 1000 * 1000
"""Bytes that must be free on the file system of the state directory; with less, nothing is written."""

_SHARE: Final = 0.8
"""The part of the bound for the database: the rest is for its write-ahead log."""
_REMOVED_AT_ONCE: Final = 500
_BATCHES: Final = 100
"""How many batches lie between two searches for old events."""
_DAY: Final = 86400.0
_FIRST_KEPT: Final = "(SELECT min(at) FROM (SELECT at FROM event ORDER BY id DESC LIMIT 100))"
"""The age of events counts from a day after this time at the latest, so that a wrong clock does not remove all."""


class History:
    """Writes events: one transaction for each batch."""

    name = "history"
    patience = 2.0

    def __init__(self, directories: Directories, *, days: float, megabytes: float) -> None:
        self._directories: Final = directories
        self._days: Final = days
        self._bytes: Final = megabytes * 1000 * 1000
        self._open: tuple[Connection, tuple[int, int]] | None = None
        self._batches = 0

    def observe(self, events: Sequence[Event]) -> None:
        """Write ``events``. Raises ``EventsLost`` if little space is left, and ``StorageError``."""
        if (problem := little_space(self._directories)) is not None:
            raise EventsLost(len(events), problem, quiet=True)
        with history_file.explained(self._directories.history):
            try:
                self._write(self._connection(), events)
            except Exception as error:
                damaged = self._open and self._open[1]
                self.close()
                if damaged is None or not history_file.is_damage(error):
                    raise
                self._open = history_file.begin(self._directories, damaged)
                self._write(self._open[0], events)

    def close(self) -> None:
        """Close the database."""
        if self._open is not None:
            connection, _ = self._open
            self._open = None
            connection.close()

    def _connection(self) -> "Connection":
        """Return the connection to the file that is there now; another process may have begun another."""
        if self._open is not None and history_file.identity(self._directories.history) != self._open[1]:
            self.close()
        if self._open is None:
            self._open = history_file.begin(self._directories)
        return self._open[0]

    def _write(self, connection: "Connection", events: Sequence[Event]) -> None:
        rows = [(event.at, event.name, msgspec.json.encode(event)) for event in events]
        over = _used(connection) > self._bytes * _SHARE
        oldest = "DELETE FROM event WHERE id IN (SELECT id FROM event {} LIMIT ?)"
        with _transaction(connection):
            connection.executemany("INSERT INTO event (at, name, event) VALUES (?, ?, ?)", rows)
            if self._batches % _BATCHES == 0:
                age = self._days * _DAY
                values = (time.time() - age, _DAY - age, 2 * _REMOVED_AT_ONCE)
                connection.execute(oldest.format(f"WHERE at < min(?, {_FIRST_KEPT} + ?) ORDER BY at"), values)
            if over:
                connection.execute(oldest.format("ORDER BY id"), (_REMOVED_AT_ONCE,))
        self._batches += 1
        if over:
            with suppress(Exception):  # the events are stored, and a later batch gives the pages back
                # Not execute(), which gives back a single page.
                connection.executescript(f"PRAGMA incremental_vacuum({_REMOVED_AT_ONCE})")


def read(
    directories: Directories, names: Sequence[str] = (), since: float = 0.0, until: float | None = None
) -> list[Event]:
    """Return the events of ``names``, or all, from ``since`` to ``until`` (epoch seconds), in their order.

    Raises ``StorageError`` if the history cannot be read; there are none if there is no history yet.
    """
    with closing(Follower(directories, names)) as follower:
        return sorted(follower.read(since, until), key=lambda event: event.at)


def is_known(directories: Directories, name: str) -> bool:
    """Whether the history has an event of ``name``, also of one that was removed. Raises ``StorageError``."""
    with closing(Follower(directories, (name,))) as follower:
        return follower.is_any()


class Follower:
    """Reads events, also those that come later from any process."""

    def __init__(self, directories: Directories, names: Sequence[str]) -> None:
        self._path: Final = directories.history
        self._names: Final = tuple(dict.fromkeys(names))
        self._named: Final = f"name IN ({','.join('?' * len(self._names))})" if names else "1"
        self._open: tuple[Connection, tuple[int, int]] | None = None
        self._last = 0

    def read(self, since: float = 0.0, until: float | None = None) -> list[Event]:
        """Return the events that came after the last call, of this time. Raises ``StorageError``."""
        found: list[Event] = []
        with history_file.explained(self._path):
            if (connection := self._connection()) is None:
                return found
            query = f"SELECT id, event FROM event WHERE id > ? AND at >= ? AND at <= ? AND {self._named} ORDER BY id"  # noqa: S608
            values = (self._last, since, float("inf") if until is None else until, *self._names)
            for number, event in connection.execute(query, values):
                self._last = number
                with suppress(ValueError):  # of a later version
                    found.append(msgspec.json.decode(event, type=Event))
        return found

    def is_any(self) -> bool:
        """Whether there is an event. Raises ``StorageError``."""
        with history_file.explained(self._path):
            query = f"SELECT 1 FROM event WHERE {self._named} LIMIT 1"  # noqa: S608
            connection = self._connection()
            return connection is not None and connection.execute(query, self._names).fetchone() is not None

    def _connection(self) -> "Connection | None":
        """Return the connection to the file that is there now; ``None`` if there is none yet."""
        there = history_file.identity(self._path)
        if self._open is not None and self._open[1] != there:
            self.close()
        if there is None or self._path.stat().st_size == 0:  # just being made
            return None
        if self._open is None:
            # Not created, and not set aside: only a writer does that.
            try:
                self._open = history_file.open_to_read(self._path), there
            except history_file.Empty:
                return None
            self._open[0].execute("PRAGMA query_only = 1")
        return self._open[0]

    def close(self) -> None:
        """Close the database."""
        if self._open is not None:
            self._open[0].close()
            self._open, self._last = None, 0


def little_space(directories: Directories) -> str | None:
    """Return why nothing is written: little space is left. ``None`` if there is enough."""
    try:
        found = os.statvfs(directories.state)
    except OSError as error:
        return f"cannot read {directories.state}: {error.strerror}"
    if found.f_bavail * found.f_frsize >= FREE:
        return None
    return (
        f"less than {FREE // 1000000} MB are free on the file system of {directories.state}: make room, or set "
        "history_mb = 0"
    )


@contextmanager
def _transaction(connection: "Connection") -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself if the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _used(connection: "Connection") -> float:
    """Return the bytes in use; free pages are used again, or given back."""
    ((pages,),) = connection.execute("PRAGMA page_count")
    ((free,),) = connection.execute("PRAGMA freelist_count")
    ((size,),) = connection.execute("PRAGMA page_size")
    return float((pages - free) * size)
