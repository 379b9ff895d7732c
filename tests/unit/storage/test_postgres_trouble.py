"""The store in PostgreSQL when its database can be read and not written: read-only, or full."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from refresher.storage.postgres import migrations, spills
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.fleet import Fleet, Rotation, import_grant, record_of, rotate_linear
from tests.support.parts import mounted, no_mounts
from tests.support.postgres import FAST, Cluster, running
from tests.support.token_server import Gate, TokenServer

_MOST_ROTATIONS = 300


@contextmanager
def _read_only(cluster: Cluster) -> Iterator[None]:
    def set_to(value: str) -> None:
        with psycopg.connect(cluster.url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")
        show = "SHOW default_transaction_read_only"
        wait_until(lambda: cluster.execute(show) == [(value,)], "the server has read its configuration")

    set_to("on")
    try:
        yield
    finally:
        set_to("off")


def test_a_database_that_is_read_only_for_a_while_costs_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, maintenance that makes a database read-only would cost logins (I2)."""
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    with _read_only(postgres):
        refused = rotate_linear(first)
        assert refused.outcome == "storage_failed"
        assert "read-only" in refused.detail
    assert server.presented["linear"] == []
    rotation = Rotation(first)
    assert gate.reached.wait(90)
    with _read_only(postgres):
        gate.opened.set()
        assert rotation.result().outcome == "rotated"
        assert len(list(spills.find(first.directories))) == 1
        assert rotate_linear(second).outcome == "storage_failed"
    assert rotate_linear(second).outcome == "lock_busy"
    assert first.commit_spills() == []
    assert rotate_linear(second).outcome == "rotated"
    assert (record_of(second).generation, server.reused, len(server.presented["linear"])) == (2, 0, 2)
    assert fleet.execute("SELECT * FROM refresher.orphan") == []


def test_a_database_without_room_costs_nothing(tmp_path: Path, server: TokenServer, gate: Gate) -> None:
    """If it failed, a database whose disk is full would cost the logins that rotate then (I2)."""
    need(no_mounts())
    gate.opened.set()
    # Autovacuum makes room in the tables at any time.
    with running(*FAST, "autovacuum=off") as cluster, mounted(cluster.root / "disk", "size=24m"):
        small = cluster.root / "disk/tablespace"
        small.mkdir()
        for each in (small.parent, small):
            shutil.chown(each, "postgres")
        cluster.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
        cluster.execute("CREATE DATABASE small TABLESPACE small")
        fleet = Fleet(tmp_path, cluster.url("small"))
        store, other = fleet.host("a"), fleet.host("b")
        migrations.migrate(store.database)
        import_grant(store, server)
        fleet.execute("CREATE TABLE filler (bytes text)")
        size = 1_000_000
        while size >= 1000:
            try:
                fleet.execute(
                    "INSERT INTO filler SELECT string_agg(md5(random()::text), '') FROM generate_series(1, %s)",
                    size // 32,
                )
            except psycopg.errors.DiskFull:
                size //= 4
        for _ in range(_MOST_ROTATIONS):
            result = rotate_linear(store)
            if result.outcome != "rotated" or list(spills.find(store.directories)):
                break
        assert result.outcome == "rotated", result
        sent = len(server.presented["linear"])
        assert len(list(spills.find(store.directories))) == 1
        assert rotate_linear(other).outcome in ("lock_busy", "storage_failed")
        assert rotate_linear(store).outcome in ("lock_busy", "storage_failed")
        assert len(server.presented["linear"]) == sent
        fleet.execute("DROP TABLE filler")
        assert rotate_linear(store).outcome == "rotated"
        assert rotate_linear(other).outcome == "rotated"
        assert (record_of(store).generation, server.reused) == (sent + 2, 0)
        assert fleet.execute("SELECT * FROM refresher.orphan") == []
        fleet.close()
