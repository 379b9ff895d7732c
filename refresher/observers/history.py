"""The history: events in an SQLite database of the state directory, bounded in age and size.

It is a log and no source of truth: it may lose events, and it begins anew if it is damaged. Several processes write it
at once. It never takes the lock of a grant.
"""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from refresher.common.errors import StorageError
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from refresher.storage import startup_checks
from refresher.storage.directories import Directories

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["FREE", "Follower", "History", "is_known", "little_space", "read"]

log = logging.getLogger(__name__)

FREE: Final = 200 * 1000 * 1000
"""Bytes that must be free on the file system of the state directory; with less, nothing is written."""

_APPLICATION: Final = 0x72667273
_VERSION: Final = 1
_SCHEMA: Final = f"""
    PRAGMA auto_vacuum = INCREMENTAL;
    BEGIN IMMEDIATE;
    PRAGMA application_id = {_APPLICATION};
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, name TEXT NOT NULL, event BLOB NOT NULL
    );
    CREATE INDEX event_at ON event (at);
    CREATE INDEX event_name ON event (name, at);
    PRAGMA user_version = {_VERSION};
    COMMIT;
"""
_BUSY: Final = 2.0
_PAGES_IN_WAL: Final = 250
_SHARE: Final = 0.8
"""The part of the bound for the database: the rest is for its write-ahead log."""
_REMOVED_AT_ONCE: Final = 500
_BATCHES: Final = 100
"""How many batches lie between two searches for old events."""
_DAY: Final = 86400.0
_SUFFIXES: Final = ("-journal", "-wal", "-shm")
_ASIDE: Final = ".aside"


class _Unusable(Exception):
    """The file is no history that this version can use."""


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
        with _explained(self._directories.history):
            try:
                self._write(self._connection(), events)
            except Exception as error:
                damaged = self._open and self._open[1]
                self.close()
                if damaged is None or not _is_damage(error):
                    raise
                self._open = _begin(self._directories, damaged)
                self._write(self._open[0], events)

    def close(self) -> None:
        """Close the database."""
        if self._open is not None:
            connection, _ = self._open
            self._open = None
            connection.close()

    def _connection(self) -> "Connection":
        """Return the connection to the file that is there now; another process may have begun another."""
        if self._open is not None and _identity(self._directories.history) != self._open[1]:
            self.close()
        if self._open is None:
            self._open = _begin(self._directories)
        return self._open[0]

    def _write(self, connection: "Connection", events: Sequence[Event]) -> None:
        rows = [(event.at, event.name, msgspec.json.encode(event)) for event in events]
        over = _used(connection) > self._bytes * _SHARE
        oldest = "DELETE FROM event WHERE id IN (SELECT id FROM event {} LIMIT ?)"
        with _transaction(connection):
            connection.executemany("INSERT INTO event (at, name, event) VALUES (?, ?, ?)", rows)
            if self._batches % _BATCHES == 0:
                before = time.time() - self._days * _DAY
                connection.execute(oldest.format("WHERE at < ? ORDER BY at"), (before, 2 * _REMOVED_AT_ONCE))
            if over:
                connection.execute(oldest.format("ORDER BY id"), (_REMOVED_AT_ONCE,))
        self._batches += 1
        if over:
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
    return bool(read(directories, (name,)))


class Follower:
    """Reads events, also those that come later from any process."""

    def __init__(self, directories: Directories, names: Sequence[str]) -> None:
        self._path: Final = directories.history
        self._names: Final = tuple(dict.fromkeys(names))
        self._open: tuple[Connection, tuple[int, int]] | None = None
        self._last = 0

    def read(self, since: float = 0.0, until: float | None = None) -> list[Event]:
        """Return the events that came after the last call, of this time. Raises ``StorageError``."""
        with _explained(self._path):
            there = _identity(self._path)
            if self._open is not None and self._open[1] != there:
                self.close()
            if there is None or self._path.stat().st_size == 0:  # just being made
                return []
            if self._open is None:
                # Not created, and not set aside: only a writer does that.
                self._open = _open_existing(self._path), there
                self._open[0].execute("PRAGMA query_only = 1")
            where, values = "", [self._last, since, float("inf") if until is None else until]
            if self._names:
                where = f"AND name IN ({','.join('?' * len(self._names))})"
            query = f"SELECT id, event FROM event WHERE id > ? AND at >= ? AND at <= ? {where} ORDER BY id"  # noqa: S608
            found = []
            for number, event in self._open[0].execute(query, (*values, *self._names)):
                self._last = number
                with suppress(ValueError):  # of a later version
                    found.append(msgspec.json.decode(event, type=Event))
            return found

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


def _begin(directories: Directories, damaged: tuple[int, int] | None = None) -> "tuple[Connection, tuple[int, int]]":
    """Open the database for writing; make it if it is missing, and set it aside if it cannot be used.

    ``damaged``: the file that is known to be damaged.
    """
    path = directories.history
    with _alone(directories.state):
        _check(path)
        try:
            if _identity(path) == damaged:
                raise _Unusable("it is damaged")  # noqa: TRY301
            connection = _open_existing(path, begin=True)
        except Exception as error:
            if not isinstance(error, _Unusable) and not _is_damage(error):
                raise
            aside = _set_aside(path)
            log.warning("the history %s is damaged or of another version: it is now %s, and begun anew", path, aside)
            _check(path)
            connection = _open_existing(path, begin=True)
        # On a network file system, processes share no memory as a write-ahead log needs.
        mode = "DELETE" if startup_checks.is_shared(directories.state) else "WAL"
        try:
            connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_IN_WAL}").fetchall()
            connection.execute(f"PRAGMA journal_size_limit = {4096 * _PAGES_IN_WAL}").fetchall()
            identity = _identity(path)
        except BaseException:
            connection.close()
            raise
        if identity is None:
            connection.close()
            raise StorageError(f"the history {path} was removed")
    return connection, identity


def _open_existing(path: Path, *, begin: bool = False) -> "Connection":
    """Open the database; ``begin``: make its table if it is empty. Raises ``_Unusable`` and errors of SQLite."""
    import sqlite3

    # No thread but that of the observer or the reader uses it.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False
    )
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if begin and not tables and not version and path.stat().st_size == 0:
            connection.executescript(_SCHEMA)
        elif (application, version) != (_APPLICATION, _VERSION):
            raise _Unusable(f"it is of version {version}" if application == _APPLICATION else "it is no history")  # noqa: TRY301
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path) -> None:
    """Make the file private if it is missing; refuse what others own, a link, or anything but a file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StorageError(
                f"{path} must be a file of user {os.geteuid()} that nobody else can read: remove it, or run "
                "'chmod 600' on it"
            )
    finally:
        os.close(descriptor)


def _set_aside(path: Path) -> Path:
    """Rename the database; only the newest one that was set aside is kept."""
    aside = path.with_name(path.name + _ASIDE)
    for suffix in (*_SUFFIXES, ""):  # a log must never be found beside another database
        source, target = (each.with_name(each.name + suffix) for each in (path, aside))
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            source.rename(target)
    return aside


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Wait until no other process begins the history, for a short time."""
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ends = time.monotonic() + _BUSY
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise StorageError("another process opens the history") from None
                time.sleep(0.01)
            except OSError:
                break  # a file system that cannot lock a directory
        yield
    finally:
        os.close(descriptor)


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise every error as a ``StorageError`` for a person."""
    try:
        yield
    except ImportError:
        raise StorageError("this Python has no sqlite3, which the history needs: set history_days = 0") from None
    except _Unusable as error:
        raise StorageError(f"the history {path} cannot be read: {error}; the next event begins a new one") from None
    except OSError as error:
        raise StorageError(f"cannot use the history {path}: {error.strerror}") from None
    except Exception as error:
        import sqlite3

        if not isinstance(error, sqlite3.Error):
            raise
        raise StorageError(f"cannot use the history {path}: {error}") from None


def _is_damage(error: BaseException) -> bool:
    import sqlite3

    if not isinstance(error, sqlite3.Error):
        return False
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    code = getattr(error, "sqlite_errorcode", None)
    # A table that is missing, or has other columns, is damage too.
    return code is not None and (code & 0xFF in damaged or code == sqlite3.SQLITE_ERROR)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _used(connection: "Connection") -> float:
    """Return the bytes in use; free pages are used again, or given back."""
    ((pages,),) = connection.execute("PRAGMA page_count")
    ((free,),) = connection.execute("PRAGMA freelist_count")
    ((size,),) = connection.execute("PRAGMA page_size")
    return float((pages - free) * size)
