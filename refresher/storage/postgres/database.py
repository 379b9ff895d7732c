"""Connections to the database, short transactions, and what is known after one that failed.

A COMMIT is never cancelled: a cancelled one ends a wait for a standby with a warning, and looks like a success. If a
connection ends during a COMMIT, nobody knows whether it took effect: ``UnknownOutcome``.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import Connection, Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from refresher.common.errors import ConfigError, StorageError

__all__ = ["Database", "DatabaseAway", "Link", "UnknownOutcome", "first_line"]

_MOST_CONNECTIONS: Final = 8
_IDLE_TIMEOUT_MS: Final = 15_000
_LOCK_TIMEOUT_MS: Final = 10_000
_LONGEST: Final = 12.0
"""Seconds for a transaction, longer than for a lock. Afterwards its connection is cut: a server or a pooler that stands
still keeps it for ever."""

_NETWORK: Final = {
    "connect_timeout": "10",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "2",
}
"""What libpq needs to notice a connection that was cut, unless the address says otherwise."""

_SESSION: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"

_WAIT_CANCELLED: Final = "01000"
"""The warning of a COMMIT whose wait for a standby was cancelled."""

_ADVICE: Final = {
    "42501": "; 'refresher store check' says which right the role lacks (that of a mirror is for 'refresher mirror')",
    "3D000": "; create it, or correct the address of the store",
}
"""By SQLSTATE: what a person does next."""

_NOT_DURABLE: Final = ("off", "local", "remote_write")
# Compiling a short statement would take seconds of the server, each time.
_BEGIN: Final = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}; SET LOCAL jit = off; "
    # A process that is stopped must not keep its locks.
    f"SET LOCAL idle_in_transaction_session_timeout = {_IDLE_TIMEOUT_MS}"
)
_BEGIN_DURABLE: Final = f"{_BEGIN}; SET LOCAL synchronous_commit = on"


class DatabaseAway(StorageError):
    """The database cannot be reached, or refuses; nothing was changed."""

    refuses_data: bool = False
    """Whether it works, and does not accept what it was given."""


class UnknownOutcome(StorageError):
    """A COMMIT was sent, and nobody knows whether it took effect."""


class Link:
    """A connection, the statement that begins a durable transaction on it, and the warnings of its server."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        self.warnings: list[str | None] = []
        connection.add_notice_handler(lambda notice: self.warnings.append(notice.sqlstate))
        # Its own descriptor of the connection: libpq may close the other one at any time.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self.begin = _BEGIN

    def prepare(self) -> None:
        """Look what makes a transaction durable here. Raises ``psycopg.Error``."""
        row = self.connection.execute("SHOW synchronous_commit").fetchone()
        self.begin = _BEGIN_DURABLE if row and row[0] in _NOT_DURABLE else _BEGIN

    def cut(self) -> None:
        """End the connection while another thread waits for it; the server completes a COMMIT that it has."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; it never raises."""
        with suppress(psycopg.Error):
            self.connection.close()
        self._socket.close()


class _Watch:
    """Cuts the connections whose transaction takes too long."""

    def __init__(self) -> None:
        self._ends: dict[Link, float] = {}
        self._lock = threading.Lock()
        self._runs = False

    @contextmanager
    def over(self, link: Link, longest: float = _LONGEST) -> Iterator[None]:
        """Watch a transaction on ``link``."""
        with self._lock:
            self._ends[link] = time.monotonic() + longest
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="database watch", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[link]

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(1.0)
            with self._lock:
                idle = 0 if self._ends else idle + 1
                if idle > _LONGEST:
                    self._runs = False
                    return
                for link, ends in self._ends.items():
                    if time.monotonic() > ends:
                        link.cut()


class Database:
    """The database at ``address``, a URL of libpq; any number of threads use it."""

    def __init__(self, address: str) -> None:
        self._conninfo = _checked(address)
        parts = conninfo_to_dict(self._conninfo)
        self.place: Final = f"PostgreSQL at {parts.get('host', 'its default host')}"
        """For messages: it holds no secret."""
        self.name: Final = str(parts.get("dbname") or "its default")
        self._idle: list[Link] = []
        self._session: Link | None = None
        self._session_lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._watch = _Watch()

    def connect(self) -> Link:
        """Return a new connection. Raises ``DatabaseAway``."""
        try:
            link = Link(psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None))
        except (psycopg.Error, UnicodeError) as error:
            raise self._away(error) from None
        try:
            with self._watch.over(link):
                link.prepare()
        except psycopg.Error as error:
            link.close()
            raise self._away(error) from None
        return link

    def watched(self, link: Link) -> AbstractContextManager[None]:
        """Cut ``link`` if a statement on it takes too long: its server or a pooler stands still."""
        return self._watch.over(link)

    @contextmanager
    def transaction(self, longest: float = _LONGEST) -> Iterator[Cursor[Any]]:
        """Run statements in one short transaction, which is durable when this returns.

        ``longest``: seconds after which its connection is cut; one that may take longer waits as long for locks.
        Raises ``UnknownOutcome`` if its COMMIT may have taken effect, and ``DatabaseAway`` if it did not.
        """
        with self._room:
            link = self._begun()
            try:
                with self._watch.over(link, longest):
                    try:
                        with link.connection.cursor() as cursor:
                            if longest > _LONGEST:
                                cursor.execute("SET LOCAL lock_timeout = 0")
                            yield cursor
                    except psycopg.Error as error:
                        self._roll_back(link)
                        raise self._away(error) from None
                    except BaseException:
                        self._roll_back(link)
                        raise
                    self._commit(link)
            finally:
                # Only when it is not watched any more: another thread may take it at once.
                if not link.connection.closed:
                    self._idle.append(link)

    def holder(self) -> tuple[int, datetime] | None:
        """Return process and start of a session that lasts as long as this process, or ``None``.

        Others see in it that a holder is alive, and wait longer for its answer. It is a hint: behind a pooler it says
        nothing.
        """
        with self._session_lock:
            had = self._session is not None
            found = self._session_now()
            return self._session_now() if found is None and had else found  # it had ended

    def _session_now(self) -> tuple[int, datetime] | None:
        try:
            if self._session is None:
                self._session = self.connect()
            with self._watch.over(self._session):
                row = self._session.connection.execute(_SESSION).fetchone()
            return None if row is None else (row[0], row[1])
        except (DatabaseAway, psycopg.Error):
            if self._session is not None:
                self._session.close()
            self._session = None
            return None

    def close(self) -> None:
        """Close the idle connections."""
        if self._session is not None:
            self._session.close()
        while self._idle:
            self._idle.pop().close()

    def _begun(self) -> Link:
        """Return a connection in a transaction. An idle one may have been cut since; a new one has not."""
        while self._idle:
            with suppress(IndexError):  # another thread took it
                link = self._idle.pop()
                with suppress(psycopg.Error), self._watch.over(link):
                    link.connection.execute(link.begin)
                    return link
                link.close()
        link = self.connect()
        try:
            with self._watch.over(link):
                link.connection.execute(link.begin)
        except psycopg.Error as error:
            link.close()
            raise self._away(error) from None
        return link

    def _commit(self, link: Link) -> None:
        link.warnings.clear()
        try:
            link.connection.execute("COMMIT")
        except psycopg.Error as error:
            # A pooler can report that its own connection has ended.
            unknown = error.sqlstate is None or error.sqlstate.startswith("08") or error.sqlstate == "40003"
            answered = not unknown and not link.connection.closed
            self._roll_back(link)
            if answered:
                raise self._away(error) from None
            raise UnknownOutcome(f"{self.place} did not confirm a COMMIT: {first_line(error)}") from None
        if _WAIT_CANCELLED in link.warnings:
            link.close()
            raise UnknownOutcome(f"{self.place} confirmed a COMMIT without its standby")

    def _roll_back(self, link: Link) -> None:
        with suppress(psycopg.Error):
            if link.connection.info.transaction_status is not TransactionStatus.IDLE:
                link.connection.execute("ROLLBACK")
            if not link.connection.closed:
                return
        link.close()

    def _away(self, error: Exception) -> DatabaseAway:
        sqlstate = getattr(error, "sqlstate", None) or ""
        away = DatabaseAway(f"{self.place}: {first_line(error)}{_ADVICE.get(sqlstate, '')}")
        # SQLSTATE classes: data exceptions and violated constraints.
        away.refuses_data = sqlstate[:2] in ("22", "23")
        return away


def _checked(address: str) -> str:
    """Return what libpq gets. Raises ``ConfigError``."""
    try:
        given = conninfo_to_dict(address)
    except (psycopg.Error, UnicodeError):
        raise ConfigError("store must be a URL such as postgresql://refresher@db.example/refresher") from None
    if given.get("password"):
        raise ConfigError(
            "the address of the store holds a password, which others can read: put it into ~/.pgpass, or name a file "
            "with ?passfile=PATH"
        )
    if given.get("sslpassword"):
        raise ConfigError(
            "the address of the store holds sslpassword, which others can read: use a client key without a passphrase "
            "that only its user can read"
        )
    passfile = given.get("passfile")
    if passfile is not None and not Path(str(passfile)).is_file():
        raise ConfigError(
            f"there is no file {passfile}, which the address of the store names as passfile: give its path"
        )
    named = {key: str(value) for key, value in given.items()}
    return make_conninfo("", **{**_NETWORK, "application_name": "refresher", **named})


def first_line(error: Exception) -> str:
    """Return the first line of an error: the others can quote a row."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
