"""What can be seen of the database and of the grants in it, for a person; nothing here changes anything."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import migrations
from refresher.storage.postgres.attempt import read_clocks
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.leases import EPOCH
from refresher.storage.postgres.settling import decode_row

__all__ = ["Content", "Orphan", "ServerFacts", "look"]

_NO_KEYS: Final = KeyRing()
"""What is looked at is in the clear part of a record."""

_SAMPLE: Final = 1000
_MOST_SHOWN: Final = 100

_TIMEOUT: Final = "SET LOCAL statement_timeout = '30s'; SET TRANSACTION READ ONLY"

_SERVER: Final = """SELECT current_setting('server_version'), current_database(), current_user, pg_backend_pid(),
    pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,
    current_setting('fsync')::boolean, current_setting('full_page_writes')::boolean,
    current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication),
    current_setting('log_parameter_max_length') <> '0' AND (current_setting('log_statement') IN ('mod', 'all')
        OR current_setting('log_transaction_sample_rate')::float8 > 0
        OR current_setting('log_min_duration_statement') <> '-1' OR current_setting('log_min_duration_sample') <> '-1')
    OR current_setting('log_parameter_max_length_on_error') <> '0'"""

_RIGHTS: Final = {
    "lease": "SELECT,INSERT,UPDATE,DELETE",
    "record": "SELECT,INSERT,UPDATE",
    "spent": "SELECT,INSERT,DELETE",
    "orphan": "SELECT,INSERT,UPDATE,DELETE",
    "seen": "SELECT,INSERT,UPDATE,DELETE",
    "demand": "SELECT,INSERT,DELETE",
    "epoch": "SELECT,INSERT,UPDATE",
    "feeds": "SELECT,INSERT,DELETE",
    "server": "SELECT,INSERT,UPDATE",
    "version": "SELECT",
}
"""What a refresher does with each table."""

_VERSION_RIGHT: Final = "SELECT on version"

_MISSING: Final = """SELECT needed.relation, needed.privilege FROM unnest(%s::text[], %s::text[])
    AS needed (relation, privilege)
    LEFT JOIN pg_namespace n ON n.nspname = 'refresher'
    LEFT JOIN pg_class c ON c.relname = needed.relation AND c.relnamespace = n.oid
    WHERE c.oid IS NULL OR NOT has_schema_privilege(n.oid, 'USAGE')
    OR NOT has_table_privilege(c.oid, needed.privilege)"""

_OWNER: Final = """SELECT pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE') FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'refresher' AND c.relname = 'record'"""

_ROLES: Final = """SELECT r.rolname, has_column_privilege(r.oid, c.oid, 'bytes', 'SELECT')
    FROM pg_roles r CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'refresher' AND c.relname = 'record' AND NOT r.rolsuper AND r.rolname !~ '^pg_'
    AND has_column_privilege(r.oid, c.oid, 'published', 'SELECT') ORDER BY 1"""

_COUNTS: Final = f"""SELECT count(*) FILTER (WHERE l.kind = 'grant'), count(*) FILTER (WHERE l.kind = 'moved'),
    count(*) FILTER (WHERE l.kind = 'grant' AND l.attempt IS NULL AND l.next_at <= clock_timestamp()),
    count(*) FILTER (WHERE l.attempt IS NOT NULL),
    {EPOCH}, (SELECT extract(epoch FROM clock_timestamp() - max(known_until))::float8 FROM refresher.epoch)
    FROM refresher.lease l"""  # noqa: S608

_SOME: Final = """SELECT l.kind, l.grant_id, l.generation, l.fingerprint, r.bytes, l.doubt_at IS NOT NULL, l.name
    FROM refresher.lease l TABLESAMPLE SYSTEM (%s::real) LEFT JOIN refresher.record r USING (name)
    WHERE l.kind <> 'empty' LIMIT %s"""


class ServerFacts(NamedTuple):
    """The server, the way to it, and the role of this process."""

    place: str
    version: str
    database: str
    role: str
    local: bool
    """Whether the connection stays on this machine."""
    tls: bool
    verified: bool
    """Whether this process checks that the certificate is for the host."""
    pooled: bool
    """Whether another program answers in the place of the server."""
    recovering: bool
    read_only: bool
    fsync: bool
    full_page_writes: bool
    logs_parameters: bool
    """Whether it can write the parameters of statements, with tokens among them, into its log."""
    synchronous_commit: str
    """What the role has; refresher raises it to ``on`` in any case."""
    synchronous_standbys: str
    standbys: int
    """How many are connected."""
    clock_difference: float
    """By how many seconds the clock of this host is ahead."""
    schema: int | None
    """0: there is none; ``None``: this role may not know."""
    owner: str
    """Who owns the tables; row security lets only members of this role see all rows."""
    missing_rights: tuple[str, ...]
    """For example ``UPDATE on lease``."""
    refreshers: tuple[str, ...]
    """Roles besides superusers that can read refresh tokens."""
    mirrors: tuple[str, ...]
    """Roles that can read what is published, and no refresh token."""


class Orphan(NamedTuple):
    """What may be the only copy of a token, and fits no record."""

    attempt: str
    name: str
    why: str
    seconds: float
    """Its age."""


class Content(NamedTuple):
    """What is in the database."""

    grants: int
    moved: int
    due: int
    held: int
    epoch_known: bool
    heartbeat_seconds: float | None
    """Since a refresher last reported; ``None``: none ever did."""
    sampled: int
    in_doubt: int
    """Of those that were sampled."""
    contradictions: tuple[tuple[str, str], ...]
    """Name and message of sampled records that cannot be used."""
    orphans: tuple[Orphan, ...]
    """The latest ones."""
    orphan_count: int


def look(database: Database) -> tuple[ServerFacts, Content | None]:
    """Return what can be seen; without its content if the schema or a right is missing. Raises ``StorageError``."""
    with database.transaction() as cursor:
        cursor.execute(_TIMEOUT.encode())
        server = _server(database, cursor)
        return server, None if server.schema != migrations.LATEST or server.missing_rights else _content(cursor)


def _server(database: Database, cursor: Cursor[Any]) -> ServerFacts:
    connection = cursor.connection
    given = connection.info.get_parameters()
    host = given.get("host", "")
    cursor.execute(_SERVER)
    row: Any = cursor.fetchone()
    version, name, role, pid, recovering, read_only, fsync, pages, names, standbys, logs = row
    cursor.execute("SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'")
    commits = cursor.fetchone()
    pairs = [(table, each) for table, needed in _RIGHTS.items() for each in needed.split(",")]
    cursor.execute(_MISSING, ([table for table, _ in pairs], [each for _, each in pairs]))
    missing = [f"{privilege} on {table}" for table, privilege in cursor.fetchall()]
    cursor.execute(_OWNER)
    owner, owns = cursor.fetchone() or ("", True)
    if not owns:
        missing.append("the ownership of the tables")
    schema: int | None = None
    refreshers: list[str] = []
    mirrors: list[str] = []
    if _VERSION_RIGHT not in missing:
        schema = migrations.version_in(cursor)
    elif not migrations.has_schema(cursor):
        schema, missing = 0, []
    if schema != 0:
        cursor.execute(_ROLES)
        for found, reads_all in cursor.fetchall():
            (refreshers if reads_all else mirrors).append(found)
    return ServerFacts(
        place=database.place,
        version=version.partition(" ")[0],
        database=name,
        role=role,
        local=not host or host.startswith(("/", "@")) or re.fullmatch(r"localhost|127\..*|::1", host) is not None,
        tls=bool(connection.pgconn.ssl_in_use),
        verified=given.get("sslmode") == "verify-full",
        pooled=connection.info.backend_pid != pid,
        recovering=recovering,
        read_only=read_only,
        fsync=fsync,
        full_page_writes=pages,
        logs_parameters=logs,
        synchronous_commit=commits[0] if commits else "on",
        synchronous_standbys=names,
        standbys=standbys,
        clock_difference=read_clocks(cursor).difference,
        schema=schema,
        owner=owner,
        missing_rights=tuple(missing),
        refreshers=tuple(refreshers),
        mirrors=tuple(mirrors),
    )


def _content(cursor: Cursor[Any]) -> Content:
    cursor.execute("SELECT pg_is_in_recovery()")
    recovering = cursor.fetchone() == (True,)
    cursor.execute((_COUNTS.replace(EPOCH, "true") if recovering else _COUNTS).encode())
    grants, moved, due, held, epoch_known, heartbeat = cursor.fetchone() or (0, 0, 0, 0, False, None)
    now = read_clocks(cursor)
    cursor.execute(_SOME, (100.0 * min(1.0, _SAMPLE / max(grants + moved, _SAMPLE)), _SAMPLE))
    rows = cursor.fetchall()
    doubts, contradictions = 0, []
    for row in rows:
        try:
            record = decode_row(row[6], row, now, _NO_KEYS).record
        except GrantFileError as error:
            contradictions.append((row[6], str(error)))
            continue
        doubts += row[5] or (isinstance(record, Grant) and record.doubt is not None)
    orphans = tuple(_orphans(cursor))
    cursor.execute("SELECT count(*) FROM refresher.orphan")
    count = cursor.fetchone()
    return Content(
        grants=grants,
        moved=moved,
        due=due,
        held=held,
        epoch_known=bool(epoch_known),
        heartbeat_seconds=heartbeat,
        sampled=len(rows),
        in_doubt=doubts,
        contradictions=tuple(contradictions),
        orphans=orphans,
        orphan_count=count[0] if count else 0,
    )


def _orphans(cursor: Cursor[Any]) -> Iterator[Orphan]:
    cursor.execute(
        """SELECT attempt::text, name, why, extract(epoch FROM clock_timestamp() - at)::float8
        FROM refresher.orphan ORDER BY at DESC LIMIT %s""",
        (_MOST_SHOWN,),
    )
    yield from map(Orphan._make, cursor.fetchall())
