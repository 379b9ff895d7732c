"""What holds secrets of a grant in the database, with what key each is sealed, and how it becomes as configured.

No condition of a query is on these bytes: a grant can be sealed with another key at any time.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from psycopg import Cursor

from refresher.common.errors import GrantFileError, StorageError
from refresher.grants.encoding import key_id_of, open_kept
from refresher.grants.record import Record, Stored, Tombstone
from refresher.grants.token_file import derive
from refresher.storage import files
from refresher.storage.directories import Directories
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import settling, spills
from refresher.storage.postgres.moments import Clocks
from refresher.storage.records import LARGEST
from refresher.storage.sealing import copies, holding_of, resealed
from refresher.storage.store import PUBLISHED, Holding

__all__ = ["holdings", "on_this_host", "orphaned", "reseal"]

_PUBLISH: Final = "UPDATE refresher.record SET published = %s WHERE name = %s"
"""Hosts need not read it: the token file is the same."""

_RECORDS: Final = """SELECT l.name, l.kind, r.bytes, r.published FROM refresher.lease l
    JOIN refresher.record r USING (name) WHERE l.name = ANY(%s) ORDER BY 1"""

_ORPHANS: Final = "SELECT name, attempt::text, bytes FROM refresher.orphan WHERE name = ANY(%s) ORDER BY 1, at"


def holdings(cursor: Cursor[Any], names: Collection[str]) -> dict[str, list[Holding]]:
    """Return what holds secrets of each of ``names``."""
    found: dict[str, list[Holding]] = {name: [] for name in names}
    cursor.execute(_RECORDS, (list(names),))
    for name, kind, data, published in cursor.fetchall():
        if (record := holding_of("record", bytes(data), name, is_record=True)) is not None:
            found[name].append(record)
        if published is not None:
            holding = _holding(PUBLISHED, bytes(published))
            if kind != "tombstone" or holding.key_id is not None:  # it has no token, and is plain since
                found[name].append(holding)
    cursor.execute(_ORPHANS, (list(names),))
    for name, attempt, data in cursor.fetchall():
        found[name].append(_holding(f"orphan {attempt}", bytes(data)))
    return found


def orphaned(cursor: Cursor[Any]) -> set[str]:
    """Return the names of all orphans: those of a grant that is gone too."""
    cursor.execute("SELECT DISTINCT name FROM refresher.orphan")
    return {row[0] for row in cursor.fetchall()}


def on_this_host(directories: Directories, name: str) -> list[Holding]:
    """Return the spills of ``name`` on this host, and the files that are kept for a person."""
    found = copies(directories, name)
    for path in spills.find(directories, name):
        try:
            there = files.read(path, LARGEST)
        except (OSError, ValueError):
            continue
        if there is not None:
            found.append(_holding(path.name, there.data.partition(b"\n")[2]))
    return found


def _holding(what: str, data: bytes) -> Holding:
    try:
        return Holding(what, key_id_of(data))
    except GrantFileError as error:
        return Holding(what, None, str(error))


def reseal(
    cursor: Cursor[Any], stored: Stored, name: str, now: Clocks, keys: KeyRing, *, only_published: bool
) -> tuple[int, Stored, GrantFileError | None]:
    """Bring all of ``name`` to the form that is configured, in this transaction; the caller has the lease.

    ``only_published``: neither the record nor an orphan is changed.

    Return how many things were changed, the record then, and the error of the first orphan that cannot be opened.
    Raises ``KeyUnavailable``, and ``GrantFileError`` for a record that cannot be opened.
    """
    changed = 0
    problem: GrantFileError | None = None
    cursor.execute(_RECORDS, ([name],))
    row = cursor.fetchone()
    if row is not None and stored.record is not None:
        record = stored.record
        published = None if row[3] is None else _republished(record, bytes(row[3]), keys)
        if published is not None:
            cursor.execute(_PUBLISH, (published, name))
        differs = not only_published and resealed(bytes(row[2]), name, keys) is not None
        if differs:
            stored = settling.write(cursor, stored, record, now, keys)
        changed += differs or published is not None
    if only_published:
        return changed, stored, problem
    cursor.execute(_ORPHANS, ([name],))
    for _, attempt, data in cursor.fetchall():
        try:
            new = resealed(bytes(data), name, keys)
        except GrantFileError as error:
            where = f"the orphan {attempt} in the table refresher.orphan"
            problem = problem or type(error)(f"{where}: {error}; delete it if it is not needed")
            continue
        if new is not None:
            cursor.execute("UPDATE refresher.orphan SET bytes = %s WHERE attempt = %s", (new, attempt))
            changed += 1
    return changed, stored, problem


def _republished(record: Record, data: bytes, keys: KeyRing) -> bytes | None:
    """Return a published token file in the form that is configured; ``None``: it has it.

    What cannot be opened is made again from the record. Raises ``GrantFileError`` if that cannot be opened either.
    """
    key = None if isinstance(record, Tombstone) else keys.published.current()
    token_file: bytes | None = None
    try:
        if key_id_of(data) == (None if key is None else key.id):
            return None
        token_file = open_kept(data, record.name, keys.published, "token_file")
    except GrantFileError as error:
        with suppress(GrantFileError, StorageError):
            token_file = derive(record)
        if token_file is None:
            raise error from None
    return settling.published_bytes(record, token_file, keys)
