"""The history: the events of all processes in one SQLite database, for some days.

It is a log and no source of truth: it may lose the last events, and nothing is decided by it.
"""

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.errors import StorageError
from refresher.config import Settings
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from refresher.storage import startup_checks
from refresher.storage.directories import Directories

__all__ = ["FREE_SPACE", "History", "read"]

log = logging.getLogger(__name__)

FREE_SPACE: Final = 200 * 1024 * 1024
"""Bytes that stay free on the file system: below that, no event is stored."""

_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0
_DAY: Final = 86400.0
_MEGABYTE: Final = 1024 * 1024
_PAGE: Final = 4096
_WAL_PAGES: Final = 256
_FULL: Final = 0.9
"""The part of its limit above which the oldest events are removed."""
_REMOVED_AT_ONCE: Final = 1000
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLES: Final = """
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, event BLOB NOT NULL);
CREATE INDEX by_time ON events (at);
CREATE INDEX by_name ON events (name, at);
"""

_decoder: Final = msgspec.json.Decoder(Event)


class History:
    """Stores events, and removes those that are too old or too many.

    Several processes write at once: each batch is one short transaction. No lock of a grant is involved.
    """

    name = "history"
    patience = 5.0

    def __init__(self, settings: Settings) -> None:
        self._path: Final = settings.directories.history
        self._seconds: Final = settings.history_days * _DAY
        # The log beside the database counts too.
        self._pages: Final = max(settings.history_mb * _MEGABYTE // _PAGE - 2 * _WAL_PAGES, 2 * _WAL_PAGES)
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    def observe(self, events: Sequence[Event]) -> None:
        """Store ``events``. Raises ``EventsLost`` if there is no room, and ``StorageError``."""
        space = os.statvfs(self._path.parent)
        if space.f_bavail * space.f_frsize < FREE_SPACE:
            why = f"less than {FREE_SPACE // _MEGABYTE} MB are free for {self._path}"
            raise EventsLost(len(events), why, quiet=True)
        rows = [(event.at, event.name, msgspec.json.encode(event)) for event in events]
        try:
            try:
                self._store(rows)
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                self._begin_anew()
                self._store(rows)
        except sqlite3.Error as error:
            self.close()
            raise StorageError(f"cannot write {self._path}: {error}") from None
        except OSError as error:
            self.close()
            raise StorageError(f"cannot open {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Close the database; the next event opens it again."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _store(self, rows: Sequence[tuple[float, str, bytes]]) -> None:
        connection = self._open()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            self._remove_old(connection)
            connection.executemany("INSERT INTO events (at, name, event) VALUES (?, ?, ?)", rows)

    def _remove_old(self, connection: sqlite3.Connection) -> None:
        """Remove some events that are too old, and the oldest if the database is nearly full."""
        connection.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY at LIMIT ?)",
            (time.time() - self._seconds, _REMOVED_AT_ONCE),
        )
        pages, free = (connection.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
        if pages - free > self._pages * _FULL:
            connection.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)", (_REMOVED_AT_ONCE,)
            )
        if pages > self._pages:  # the limit is lower than it was
            connection.execute(f"PRAGMA incremental_vacuum({_REMOVED_AT_ONCE})").fetchall()

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now, which a person may have deleted or replaced."""
        if self._connection is not None and self._opened == _identity(self._path):
            return self._connection
        self.close()
        _make_private(self._path)
        connection = _connect(self._path)
        try:
            # On a network file system, processes cannot share the memory that a write-ahead log needs.
            journal = "TRUNCATE" if startup_checks.is_shared(self._path.parent) else "WAL"
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}").fetchone()
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE}").fetchone()
            _make_tables(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._opened = connection, _identity(self._path)
        return connection

    def _begin_anew(self) -> None:
        """Set a damaged database aside, unless another process has just done so."""
        damaged = _identity(self._path) if self._connection is None else self._opened
        self.close()
        if damaged != _identity(self._path):
            return
        aside = self._path.with_name(f"{self._path.name}.aside")
        self._path.replace(aside)  # the one before is given up: a history is worth no more
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
        log.warning("the history %s was damaged or foreign; it is now %s, and a new one begins", self._path, aside)


def read(
    directories: Directories, names: Sequence[str] = (), *, since: float = 0.0, after: int = 0, most: int = -1
) -> list[tuple[int, Event]]:
    """Return the events of ``names``, or of all, from the oldest to the newest, each with its number.

    ``since``: epoch seconds; ``after``: only events with a higher number; ``most``: the newest ones only.

    Raises ``StorageError``.
    """
    path = directories.history
    try:
        if _identity(path) is None:
            return []
        _check_private(path)
        with closing(_connect(path, writable=False)) as connection:
            if _version(connection) == 0:
                return []
            chosen = f"AND name IN ({', '.join('?' * len(names))})" if names else ""
            rows = connection.execute(
                f"SELECT id, event FROM events WHERE at >= ? AND id > ? {chosen} ORDER BY id DESC LIMIT ?",  # noqa: S608  only placeholders
                (since, after, *names, most),
            ).fetchall()
        return [(number, _decoder.decode(event)) for number, event in reversed(rows)]
    except OSError as error:
        raise StorageError(f"cannot read the history {path}: {error.strerror}") from None
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        what_next = "; the next event begins a new one" if _is_damaged(error) else ""
        raise StorageError(f"cannot read the history {path}: {error}{what_next}") from None


def _connect(path: Path, *, writable: bool = True) -> sqlite3.Connection:
    mode = "rw" if writable else "ro"
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database. Raises ``sqlite3.DatabaseError`` if it is not one of refresher."""
    if (version := _version(connection)) > _VERSION:
        raise sqlite3.OperationalError("a later version of refresher has made it; use that version")
    if version == _VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version(connection) == 0:  # no other process has made them meanwhile
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise _Foreign("it is another program's database")  # noqa: TRY301
            for statement in _TABLES.strip().splitlines():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


class _Foreign(sqlite3.DatabaseError):
    """A database that refresher has not made."""


def _is_damaged(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension
    return isinstance(error, _Foreign) or code in _DAMAGED


def _version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _make_private(path: Path) -> None:
    """Make the file if it is not there. Raises ``OSError`` and ``StorageError`` if others can use it."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    _check_private(path)


def _check_private(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StorageError(
            f"{path} must be a file of user {os.geteuid()} with mode 600: delete it, and refresher makes a new one"
        )
