"""Writing a record, its columns and what is published in one transaction; and settling an attempt.

A new refresh token is stored where grant, generation and fingerprint are still those that were sent, no matter who
holds the lease now: it may be the only copy. Any other outcome counts only for the attempt that still holds the lease.
"""

import hashlib
import uuid
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from psycopg import Cursor
from psycopg.errors import UniqueViolation

from refresher.common.errors import GrantFileError, ImportRefused, StorageError
from refresher.grants import policy, refresh_life
from refresher.grants.encoding import decode, encode, encode_kept, key_id_of
from refresher.grants.envelope import PLAIN
from refresher.grants.policy import Rotate
from refresher.grants.record import MAX_SPENT, NO_RECORD, Failure, Grant, Moved, Record, Stored, Tombstone
from refresher.grants.sources import awaited, is_renewed
from refresher.grants.token_file import derive
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import feeds
from refresher.storage.postgres.moments import Clocks

__all__ = [
    "Sent",
    "decode_row",
    "delay_of",
    "has_newer_source",
    "keep_orphan",
    "load",
    "load_each",
    "note_spent",
    "published_bytes",
    "settle",
    "write",
]

_LOAD: Final = """SELECT l.kind, l.grant_id, l.generation, l.fingerprint, r.bytes, l.attempt, l.last_attempt
    FROM refresher.lease l LEFT JOIN refresher.record r USING (name) WHERE l.name = %s"""

_LOAD_EACH: Final = """SELECT l.kind, l.grant_id, l.generation, l.fingerprint, r.bytes, l.name
    FROM refresher.lease l LEFT JOIN refresher.record r USING (name) WHERE l.name = ANY(%s)"""

_LEASE: Final = """UPDATE refresher.lease SET kind = %(kind)s, grant_id = %(grant_id)s, generation = %(generation)s,
    fingerprint = %(fingerprint)s, server = %(server)s, key_id = %(key_id)s,
    doubt_at = CASE WHEN %(keeps_doubt)s THEN doubt_at END WHERE name = %(name)s"""

_SETTLED: Final = """UPDATE refresher.lease SET last_attempt = %(attempt)s, looked_at = clock_timestamp(),
    next_at = CASE WHEN attempt IS NULL OR attempt = %(attempt)s OR state = 'open'
        THEN coalesce(clock_timestamp() + %(delay)s * interval '1 s', 'infinity') ELSE next_at END,
    armed_at = CASE WHEN attempt = %(attempt)s OR state = 'open' THEN NULL ELSE armed_at END,
    until = CASE WHEN attempt = %(attempt)s OR state = 'open' THEN NULL ELSE until END,
    attempt = CASE WHEN attempt = %(attempt)s OR state = 'open' THEN NULL ELSE attempt END,
    state = CASE WHEN attempt = %(attempt)s OR state = 'open' THEN NULL ELSE state END
    WHERE name = %(name)s"""
"""Ends our lease, and an open one of another, whose arming then gets no row; an armed one stays."""

_RECORD: Final = """INSERT INTO refresher.record AS r (name, bytes, generation, published, published_hash)
    VALUES (%(name)s, %(bytes)s, %(generation)s, %(published)s, %(published_hash)s)
    ON CONFLICT (name) DO UPDATE SET bytes = EXCLUDED.bytes, generation = EXCLUDED.generation,
    published = CASE WHEN %(moved)s THEN NULL ELSE coalesce(EXCLUDED.published, r.published) END,
    published_hash = CASE WHEN %(moved)s THEN NULL ELSE coalesce(EXCLUDED.published_hash, r.published_hash) END,
    xid = CASE WHEN EXCLUDED.published_hash IS DISTINCT FROM r.published_hash
        THEN pg_current_xact_id() ELSE r.xid END"""
"""The hash and not the bytes say whether hosts must read it: what is sealed has other bytes each time."""

_SPENT: Final = """INSERT INTO refresher.spent (fingerprint, name) SELECT unnest(%s::text[]), %s
    ON CONFLICT (fingerprint) DO NOTHING"""

_PRUNE: Final = """DELETE FROM refresher.spent WHERE fingerprint IN (
    SELECT fingerprint FROM refresher.spent WHERE name = %s ORDER BY at DESC OFFSET %s)"""

_PRUNED_EVERY: Final = 64
"""Generations after which the oldest fingerprints of a grant are deleted."""

_ORPHAN: Final = """INSERT INTO refresher.orphan (attempt, name, fingerprint, bytes, why) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (attempt) DO NOTHING"""

_BUSY: Final = """UPDATE refresher.server SET held_until = greatest(held_until,
    clock_timestamp() + %s * interval '1 s') WHERE origin = %s"""
"""A server that is busy until a time that it named is asked for none of its grants before."""


class Sent(NamedTuple):
    """The refresh token that an attempt used."""

    attempt: uuid.UUID
    name: str
    grant_id: str
    generation: int
    fingerprint: str | None


def load(cursor: Cursor[Any], name: str, now: Clocks, keys: KeyRing, *, lock: bool = False) -> Stored:
    """Return the record of ``name`` by the clocks of this host.

    ``lock``: nobody else changes it in this transaction. Raises ``GrantFileError`` for a record that cannot be read, or
    that contradicts its columns.
    """
    row = _locked_row(cursor, name) if lock else _row(cursor, name)
    return Stored(None, NO_RECORD) if row is None else decode_row(name, row, now, keys)


def _row(cursor: Cursor[Any], name: str) -> tuple[Any, ...] | None:
    cursor.execute(_LOAD, (name,))
    return cursor.fetchone()


def _locked_row(cursor: Cursor[Any], name: str) -> tuple[Any, ...] | None:
    # In two statements: one that waits for the lease would read the record as it was before the wait.
    cursor.execute("SELECT 1 FROM refresher.lease WHERE name = %s FOR UPDATE", (name,))
    return _row(cursor, name)


def load_each(
    cursor: Cursor[Any], names: Collection[str], now: Clocks, keys: KeyRing
) -> list[tuple[str, Stored | GrantFileError]]:
    """Return the records of ``names``, and an error in the place of one that cannot be used."""
    cursor.execute(_LOAD_EACH, (list(names),))
    rows = {row[-1]: row for row in cursor.fetchall()}
    found: list[tuple[str, Stored | GrantFileError]] = []
    for name in names:
        try:
            stored = decode_row(name, rows[name], now, keys) if name in rows else Stored(None, NO_RECORD)
            found.append((name, stored))
        except GrantFileError as error:
            found.append((name, error))
    return found


def decode_row(name: str, row: tuple[Any, ...], now: Clocks, keys: KeyRing) -> Stored:
    """Return the record in a row of the lease and its record. Raises ``GrantFileError``."""
    kind, grant_id, generation, fingerprint, data = row[:5]
    if kind == "empty":
        return Stored(None, NO_RECORD)
    if data is None:
        raise GrantFileError(f"the record of {name} is missing in the database: restore it, or log in again")
    stored = decode(bytes(data), name, keys)
    record = stored.record
    columns = None
    if record is not None:
        columns = (_kind(record), record.grant_id, record.generation, _fingerprint(record))
    if record is None or columns != (kind, grant_id, generation, fingerprint):
        raise GrantFileError(
            f"the record of {name} contradicts its columns in the database: it was changed by hand, or restored in "
            f"part. Restore it, or log in again: 'refresher login {name} URL'"
        )
    return Stored(now.read(record), stored.checksum)


def has_newer_source(cursor: Cursor[Any], record: Record | None, now: Clocks, keys: KeyRing) -> bool:
    """Whether ``record`` waits for the token of another grant that is there now."""
    if not isinstance(record, Grant) or not (names := awaited(record)):
        return False
    sources: dict[str, Grant | None] = {}
    for name, found in load_each(cursor, names, now, keys):
        source = found.record if isinstance(found, Stored) else None
        sources[name] = source if isinstance(source, Grant) else None
    return is_renewed(record, sources)


def delay_of(record: Record | None, now: Clocks, *, demanded: bool = False, renewed: bool = False) -> float | None:
    """Return in how many seconds somebody must look at ``record``; ``None``: only after a person or an agent acts."""
    if not isinstance(record, Grant):
        return None
    decision = policy.decide(record, now.here, demanded=demanded, renewed=renewed)
    times = [] if (warning := refresh_life.next_warning(record, now.here)) is None else [max(warning.seconds, 1.0)]
    if isinstance(decision, Rotate):
        times.append(0.0)
    elif decision.until is not None:
        times.append(max(decision.until - now.here.wall, 0.0))
    return min(times, default=None)


def write(
    cursor: Cursor[Any], stored: Stored, record: Record, now: Clocks, keys: KeyRing, *, keeps_doubt: bool = False
) -> Stored:
    """Write ``record`` over ``stored``, with its columns. The caller holds it, or ``keeps_doubt`` of a later holder.

    Raises ``ImportRefused``, and ``KeyUnavailable`` before anything is written.
    """
    record = msgspec.structs.replace(record, begun_from=stored.checksum)
    data, checksum = encode(now.write(record), keys)
    published = None
    with suppress(StorageError):  # too long for a token file: readers keep what they have
        published = derive(record)
    try:
        cursor.execute(
            _LEASE,
            {
                "kind": _kind(record),
                "grant_id": record.grant_id,
                "generation": record.generation,
                "fingerprint": _fingerprint(record),
                "server": _server(record),
                "name": record.name,
                "keeps_doubt": keeps_doubt,
                "key_id": key_id_of(data) or "",
            },
        )
    except UniqueViolation:
        raise ImportRefused(
            "another grant holds this refresh token already: two names would revoke each other's login"
        ) from None
    cursor.execute("INSERT INTO refresher.server (origin) VALUES (%s) ON CONFLICT DO NOTHING", (_server(record),))
    cursor.execute(
        _RECORD,
        {
            "name": record.name,
            "bytes": data,
            "generation": record.generation,
            "published": None if published is None else published_bytes(record, published, keys),
            "published_hash": None if published is None else hashlib.sha256(published).hexdigest(),
            "moved": isinstance(record, Moved),
        },
    )
    feeds.note(cursor, record)
    if stored.record is None or record.generation > stored.record.generation:
        feeds.wake(cursor, record.name)
    return Stored(record, checksum)


def published_bytes(record: Record, token_file: bytes, keys: KeyRing) -> bytes:
    """Return the token file of ``record`` as other hosts read it: sealed, unless it holds no secret."""
    return encode_kept(
        record.name, token_file, PLAIN if isinstance(record, Tombstone) else keys.published, "token_file"
    )


def note_spent(cursor: Cursor[Any], record: Record) -> None:
    """Note the spent refresh tokens of ``record``, and that its own is not spent."""
    cursor.execute(_SPENT, (list(record.spent), record.name))
    if isinstance(record, Grant):
        cursor.execute(
            "DELETE FROM refresher.spent WHERE fingerprint = %s AND name = %s", (record.fingerprint(), record.name)
        )


def settle(
    cursor: Cursor[Any],
    sent: Sent,
    changed: Grant,
    now: Clocks,
    keys: KeyRing,
    *,
    issued: bool,
    of_another: bool = False,
) -> Record | None:
    """Store the outcome of an attempt, and return the record that is stored then.

    ``issued``: ``changed`` has a new token. Raises ``GrantFileError`` if the record there cannot be read, and
    ``ImportRefused`` if another grant holds that token: with ``of_another``, a person must log in again.
    """
    if (row := _locked_row(cursor, sent.name)) is None:
        keep_orphan(cursor, sent, encode(changed, keys)[0], "the grant is not there any more")
        return None
    kind, grant_id, generation, fingerprint, _, attempt, last = row
    # What was moved away or removed is active elsewhere, or nowhere: a late answer does not bring it back.
    columns = ("grant", sent.grant_id, sent.generation, sent.fingerprint)
    fits = (kind, grant_id, generation, fingerprint) == columns
    if last == sent.attempt:
        return decode_row(sent.name, row, now, keys).record  # it was committed, and only the confirmation was lost
    # The database has lost a rotation of this grant, in a promotion or a restore: its refresh token is spent.
    lost = issued and (kind, grant_id) == ("grant", sent.grant_id) and _is_set_back(row, sent, now, keys)
    if lost or (fits and (issued or attempt == sent.attempt)):
        stored = decode_row(sent.name, row, now, keys)
        if isinstance(stored.record, Grant):
            changed = msgspec.structs.replace(changed, end_warned=_warned(stored.record, changed))
            if of_another:
                keep_orphan(
                    cursor,
                    sent,
                    encode(changed, keys)[0],
                    "the server has issued the refresh token of another grant",
                )
                changed = _ended(stored.record, now)
        written = write(cursor, stored, changed, now, keys)
        spent = {sent.fingerprint, fingerprint} - {None} if _replaced(sent, changed) else ()
        cursor.execute(_SPENT, ([*spent], sent.name))
        if issued and changed.generation % _PRUNED_EVERY == 0:
            cursor.execute(_PRUNE, (sent.name, MAX_SPENT))
        demanded = not issued and _is_demanded(cursor, changed)
        renewed = has_newer_source(cursor, changed, now, keys)
        delay = delay_of(changed, now, demanded=demanded, renewed=renewed)
        cursor.execute(_SETTLED, {"attempt": sent.attempt, "delay": delay, "name": sent.name})
        if changed.failure is not None and changed.failure.busy_until is not None:
            wait = min(changed.failure.busy_until - now.here.wall, policy.MAX_WAIT)
            cursor.execute(_BUSY, (wait, _server(changed)))
        if issued:
            cursor.execute(
                "DELETE FROM refresher.demand WHERE name = %s AND generation <= %s", (sent.name, sent.generation)
            )
        return written.record
    if issued and not _is_known(cursor, changed, fingerprint):
        keep_orphan(cursor, sent, encode(changed, keys)[0], "the grant was changed or replaced meanwhile")
    cursor.execute(
        """UPDATE refresher.lease SET attempt = NULL, state = NULL, armed_at = NULL, until = NULL, next_at =
        clock_timestamp() WHERE name = %s AND attempt = %s""",
        (sent.name, sent.attempt),
    )
    return decode_row(sent.name, row, now, keys).record


def keep_orphan(cursor: Cursor[Any], sent: Sent, data: bytes, why: str) -> None:
    """Keep what may be the only copy of a token, and fits no record."""
    cursor.execute(_ORPHAN, (sent.attempt, sent.name, sent.fingerprint, data, why))


def _is_demanded(cursor: Cursor[Any], grant: Grant) -> bool:
    cursor.execute("SELECT 1 FROM refresher.demand WHERE name = %s AND generation = %s", (grant.name, grant.generation))
    return cursor.fetchone() is not None


def _is_set_back(row: tuple[Any, ...], sent: Sent, now: Clocks, keys: KeyRing) -> bool:
    """Whether the record is older than what was sent, also if a host has reported the generation that is missing."""
    generation = row[2]
    if generation != sent.generation:
        return bool(generation < sent.generation)
    record = decode_row(sent.name, row, now, keys).record
    return isinstance(record, Grant) and record.doubt is not None and record.doubt.restored


def _ended(grant: Grant, now: Clocks) -> Grant:
    """Return ``grant`` with a refresh token that is spent, and whose successor another grant holds."""
    failure = Failure(
        outcome="reauthorization_required",
        code="refresh_token_of_another_grant",
        description="the server has issued the refresh token that another grant holds: log in again under this name, "
        "with an account or a client of its own",
        at=now.here.wall,
        retry_at=None,
        moment=now.here,
    )
    return msgspec.structs.replace(grant, dead=True, failures=grant.failures + 1, doubt=None, failure=failure)


def _is_known(cursor: Cursor[Any], changed: Grant, current: str | None) -> bool:
    """Whether the refresh token of ``changed`` is stored, or was: a spill can come back after it was taken."""
    if (fingerprint := changed.fingerprint()) == current:
        return True
    cursor.execute("SELECT 1 FROM refresher.spent WHERE fingerprint = %s", (fingerprint,))
    return cursor.fetchone() is not None


def _server(record: Record) -> str:
    """Return the origin of the authorization server, as far as its address has one; it only groups requests."""
    if not isinstance(record, Grant):
        return ""
    with suppress(ValueError):
        parts = urlsplit(record.token_endpoint)
        return f"{parts.scheme}://{parts.netloc}".lower()
    return ""


def _kind(record: Record) -> str:
    return "tombstone" if isinstance(record, Tombstone) else "moved" if isinstance(record, Moved) else "grant"


def _fingerprint(record: Record) -> str | None:
    return None if isinstance(record, Tombstone) else record.fingerprint()


def _warned(stored: Grant, changed: Grant) -> float | None:
    return stored.end_warned if changed.login_ends_at == stored.login_ends_at else changed.end_warned


def _replaced(sent: Sent, changed: Grant) -> bool:
    return sent.fingerprint is not None and changed.fingerprint() != sent.fingerprint
