"""The file of the history: opened for writing and for reading, begun anew if it cannot be used."""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refresher.common.errors import StorageError
from refresher.storage import startup_checks
from refresher.storage.directories import Directories

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = [
    "ASIDE",
    "Empty",
    "Unusable",
    "begin",
    "check_private",
    "explained",
    "identity",
    "is_damage",
    "open_existing",
    "open_to_read",
    "side_file",
]

log = logging.getLogger(__name__)

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
_SUFFIXES: Final = ("-journal", "-wal", "-shm")
ASIDE: Final = ".aside"


class Unusable(Exception):
    """The file is no history that this version can use."""


class Empty(Unusable):
    """A file without a table: a writer is making it, or was killed."""


def begin(directories: Directories, damaged: tuple[int, int] | None = None) -> "tuple[Connection, tuple[int, int]]":
    """Open the database for writing; make it if it is missing, and set it aside if it cannot be used.

    ``damaged``: the file that is known to be damaged.
    """
    path = directories.history
    with _alone(directories.state):
        _check(path)
        try:
            if identity(path) == damaged:
                raise Unusable("it is damaged")  # noqa: TRY301
            connection = open_existing(path, make=True)
        except Exception as error:
            if not isinstance(error, Unusable) and not is_damage(error):
                raise
            aside = _set_aside(path)
            log.warning("the history %s is damaged or of another program: it is now %s, and begun anew", path, aside)
            _check(path)
            connection = open_existing(path, make=True)
        # On a network file system, processes share no memory as a write-ahead log needs.
        mode = "DELETE" if startup_checks.is_shared(directories.state) else "WAL"
        try:
            connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_IN_WAL}").fetchall()
            connection.execute(f"PRAGMA journal_size_limit = {4096 * _PAGES_IN_WAL}").fetchall()
            there = identity(path)
        except BaseException:
            connection.close()
            raise
        if there is None:
            connection.close()
            raise StorageError(f"the history {path} was removed")
    return connection, there


def open_to_read(path: Path) -> "Connection":
    """Open the database; in a directory that cannot be written, without making the files of its log."""
    import sqlite3

    if os.access(path.parent, os.W_OK):
        return open_existing(path)
    try:
        return open_existing(path, mode="ro")  # these files may be there
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
    return open_existing(path, mode="ro&immutable=1")


def open_existing(path: Path, *, mode: str = "rw", make: bool = False) -> "Connection":
    """Open the database; ``make``: make its table if it is empty. Raises ``Unusable`` and errors of SQLite."""
    import sqlite3

    # No thread but that of the observer or the reader uses it.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("BEGIN")  # else another process could make the table between two of these
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        connection.execute("COMMIT")
        if not tables and not version and not application:
            if not make:
                raise Empty("nothing has happened yet")  # noqa: TRY301
            connection.executescript(_SCHEMA)
        elif application == _APPLICATION and version > _VERSION:
            # Never set aside: two versions side by side would take the file from each other.
            raise StorageError(f"the history {path} is of a later version: use the newer refresher")  # noqa: TRY301
        elif (application, version) != (_APPLICATION, _VERSION):
            raise Unusable("it is no history")  # noqa: TRY301
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path) -> None:
    """Make the file private if it is missing; refuse what others own, a link, or anything but a file."""
    if not os.path.lexists(path):
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # A file that exists is never opened here: to close it would drop the locks that SQLite holds on it in this process.
    check_private(path, path.lstat())
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"cannot write in {path.parent}: is its file system read-only?")


def check_private(path: Path, found: os.stat_result) -> None:
    """Raise ``StorageError`` if it is no file, or others own it or can read it."""
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StorageError(
            f"{path} must be a file of user {os.geteuid()} that nobody else can read: remove it, or run 'chmod 600' "
            "on it"
        )


def _set_aside(path: Path) -> Path:
    """Rename the database; only the newest one that was set aside is kept."""
    aside = path.with_name(path.name + ASIDE)
    for suffix in (*_SUFFIXES, ""):  # a log must never be found beside another database
        source, target = side_file(path, suffix), side_file(aside, suffix)
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            source.rename(target)
    return aside


def side_file(path: Path, suffix: str) -> Path:
    """Return the path of a file that lies beside the database."""
    return path.with_name(path.name + suffix)


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
def explained(path: Path) -> Iterator[None]:
    """Raise every error as a ``StorageError`` for a person."""
    try:
        yield
    except ImportError:
        raise StorageError("this Python has no sqlite3, which the history needs: set history_days = 0") from None
    except Unusable as error:
        raise StorageError(f"the history {path} cannot be read: {error}; the next event begins a new one") from None
    except OSError as error:
        raise StorageError(f"cannot use the history {path}: {error.strerror}") from None
    except Exception as error:
        import sqlite3

        if not isinstance(error, sqlite3.Error):
            raise
        raise StorageError(f"cannot use the history {path}: {error}") from None


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the content of the file cannot be used."""
    import sqlite3

    if not isinstance(error, sqlite3.Error):
        return False
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    code = getattr(error, "sqlite_errorcode", None)
    # A table that is missing, or has other columns, is damage too.
    other_table = str(error).startswith("no such ") or "has no column" in str(error)
    return other_table or (code is not None and code & 0xFF in damaged)


def identity(path: Path) -> tuple[int, int] | None:
    """Return which file it is; ``None`` if there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
