"""What do rotations and claims cost with the grants in PostgreSQL?"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg

from refresher.operations.import_grant import store_grant
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.file_store import FileStore
from refresher.storage.postgres import migrations
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.store import Store
from tests.bench.homes import Home, new_grants
from tests.bench.measuring import CannotRun, Run
from tests.bench.server import Server
from tests.support import postgres

__all__ = ["measure"]

_TERMS: Final = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
_AT_ONCE: Final = 8
_GRANTS: Final = 40
_ROUNDS: Final = 5
_CLAIMED: Final = 16
_FEW: Final = 1000

_STORED: Final = """WITH s AS (INSERT INTO refresher.server (origin)
    SELECT 'https://server-' || i FROM generate_series(0, 99) AS i ON CONFLICT DO NOTHING)
    INSERT INTO refresher.lease (name, kind, grant_id, generation, fingerprint, server, next_at)
    SELECT 'stored-' || i, 'grant', i, 0, md5(i::text), 'https://server-' || i %% 100,
    clock_timestamp() + CASE WHEN i %% (%(size)s / 1000) = 0 THEN '-1 s' ELSE '1 h' END::interval
    FROM generate_series(%(first)s, %(size)s - 1) AS i"""


def measure(run: Run) -> None:
    """Count rotations in the database, bare UPDATEs and rotations in files; time claims among few and many grants."""
    if postgres.find_binaries() is None:
        raise CannotRun("PostgreSQL is not installed")
    with Server() as server, postgres.running() as cluster:
        _rates(run, server, cluster)
        _claims(run, cluster)


def _rates(run: Run, server: Server, cluster: postgres.Cluster) -> None:
    count = run.count(400)
    run.say(f"{count} rotations with the grants in PostgreSQL, and in files, {_AT_ONCE} at once")
    own, other = Home(run.root / "database"), Home(run.root / "database-files")
    with cluster.database() as url:
        store = PostgresStore(url, own.directories)
        migrations.migrate(store.database)
        files = FileStore(other.directories)
        for each in (store, files):
            each.prepare()
            for grant in new_grants(_GRANTS, endpoint=server.endpoint):
                store_grant(each, grant, replace=False, if_absent=False, stopping=lambda: False)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE bare (id integer PRIMARY KEY, bytes bytea)")
            connection.execute("INSERT INTO bare SELECT i, ''::bytea FROM generate_series(0, 39) AS i")
            rounds = []
            for _ in range(_ROUNDS):
                rotated = _rate(count, _rotations(store))
                bare = _updates(connection, count)
                rounds.append((rotated, bare, _rate(count, _rotations(files))))
        store.close()
    run.note("database.rate", [(rotated, bare) for rotated, bare, _ in rounds])
    run.note("database.files", [(rotated, in_files) for rotated, _, in_files in rounds])


def _rotations(store: Store) -> Callable[[int], None]:
    def one(number: int) -> None:
        result = rotate(store, Order(name=f"grant-{number % _GRANTS}", seen=10**6, force=True), _TERMS)
        if result is None or result.outcome != "rotated":
            raise CannotRun(f"a rotation ended with {result}")

    return one


def _rate(count: int, one: Callable[[int], None]) -> float:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        began = time.perf_counter()
        for _ in threads.map(one, range(count)):
            pass
        return count / (time.perf_counter() - began)


def _updates(connection: psycopg.Connection, count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        connection.execute("UPDATE bare SET bytes = %s WHERE id = %s", (bytes(2048), number % _GRANTS))
    return count / (time.perf_counter() - began)


def _claims(run: Run, cluster: postgres.Cluster) -> None:
    size = run.count(1_000_000)
    times: dict[int, list[float]] = {}
    with cluster.database() as url:
        store = PostgresStore(url, Home(run.root / "claims").directories)
        migrations.migrate(store.database)
        first = 0
        for stored in (_FEW, size):
            run.say(f"claims among {stored:,} grants")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(_STORED, {"first": first, "size": stored})
                connection.execute("VACUUM ANALYZE refresher.lease")
            first = stored
            times[stored] = [_claim(store) for _ in range(_ROUNDS + 1)][1:]  # the first one opens a connection
        store.close()
    run.note("database.claim", list(zip(times[size], times[_FEW], strict=True)))


def _claim(store: PostgresStore) -> float:
    began = time.perf_counter()
    claimed = store.claim_due(_CLAIMED, each=4, rooms={})
    ended = time.perf_counter()
    if len(claimed) != _CLAIMED:
        raise CannotRun(f"{len(claimed)} grants were claimed")
    store.give_back()
    return 1000 * (ended - began)
