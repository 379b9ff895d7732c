"""The schema and its versions: numbered SQL, applied once each, by one process at a time."""

import re
from importlib import resources
from typing import Any, Final, cast

from psycopg import Cursor, sql

from refresher.common.errors import StorageError
from refresher.storage.postgres.database import Database

__all__ = ["LATEST", "has_schema", "migrate", "read_version", "require_latest", "version_in"]

_FILES: Final = re.compile(r"(\d{3})\.sql")
_LONGEST: Final = 3600.0
"""Seconds for which a migration may change large tables."""

_LOCK: Final = 0x7265667265736872  # any number that no other program uses: "refreshr"

_TABLE: Final = """
CREATE SCHEMA IF NOT EXISTS refresher;
CREATE TABLE IF NOT EXISTS refresher.version (
    number integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""

_HAS_TABLE: Final = """SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'refresher' AND c.relname = 'version')"""


def _scripts() -> dict[int, str]:
    folder = resources.files(__package__) / "schema"
    found = ((match, entry) for entry in folder.iterdir() if (match := _FILES.fullmatch(entry.name)))
    return {int(match[1]): entry.read_text("utf-8") for match, entry in found}


LATEST: Final = max(_scripts())
"""The version that this refresher needs."""


def migrate(database: Database) -> list[int]:
    """Apply the versions that are missing, and return their numbers. Any number of processes can do so at once.

    Raises ``StorageError`` if the schema is newer than this refresher.
    """
    with database.transaction(_LONGEST) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        if (at := version_in(cursor)) == 0:
            cursor.execute(_TABLE)  # only then: a role that may not create finds a schema that is complete
        _refuse_newer(database, at)
        scripts = _scripts()
        applied = [number for number in sorted(scripts) if number > at]
        for number in applied:
            cursor.execute(sql.SQL(cast("Any", scripts[number])))
            cursor.execute("INSERT INTO refresher.version (number) VALUES (%s)", (number,))
    return applied


def read_version(database: Database) -> int:
    """Return the version of the schema; 0 if there is none. Raises ``StorageError``."""
    with database.transaction() as cursor:
        return version_in(cursor)


def require_latest(database: Database) -> None:
    """Raise ``StorageError`` unless the schema is of the version that this refresher needs."""
    at = read_version(database)
    _refuse_newer(database, at)
    if at < LATEST:
        raise StorageError(
            f"{database.place} has {'no schema' if at == 0 else f'version {at} of the schema'} of refresher, and this "
            f"refresher needs version {LATEST}: run 'refresher store init'"
        )


def has_schema(cursor: Cursor[Any]) -> bool:
    """Whether there is a schema, which this role may not be allowed to read."""
    cursor.execute(_HAS_TABLE)
    return cursor.fetchone() == (True,)


def version_in(cursor: Cursor[Any]) -> int:
    """Return the version of the schema; 0 if there is none."""
    if not has_schema(cursor):
        return 0
    cursor.execute("SELECT coalesce(max(number), 0) FROM refresher.version")
    row = cursor.fetchone()
    return int(row[0]) if row else 0


def _refuse_newer(database: Database, at: int) -> None:
    if at > LATEST:
        raise StorageError(
            f"{database.place} has version {at} of the schema of refresher, and this refresher knows version {LATEST} "
            "only: use the newer refresher"
        )
