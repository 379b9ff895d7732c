"""The store in PostgreSQL when its database is restored from a backup: what a host has published shows it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from refresher.operations.mirror import Mirror
from refresher.storage.postgres import epochs
from refresher.storage.postgres.changes import Changes
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.fleet import Fleet, import_grant, record_of, rotate_linear
from tests.support.postgres import Cluster
from tests.support.token_server import Gate, TokenServer

Restored = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def restored(fleet: Fleet, postgres: Cluster, tmp_path: Path) -> Restored:
    """A context whose end restores the database as it was at the begin, into new tables."""

    @contextmanager
    def restoring() -> Iterator[None]:
        # Of the user of the server.
        dump = postgres.root / f"{tmp_path.name}.dump"
        postgres.run("pg_dump", "--format=custom", "--file", str(dump), "--dbname", fleet.url)
        yield
        postgres.run("pg_restore", "--clean", "--single-transaction", "--dbname", fleet.url, str(dump))
        dump.unlink()

    return restoring


def _mirror(store: PostgresStore) -> Mirror:
    return Mirror(store.database, Changes(store.database), store.publisher, store.mirrors)


def _open(fleet: Fleet) -> None:
    """Let the epoch open, as after 40 s, and the grants be due."""
    fleet.execute("UPDATE refresher.epoch SET opens_at = clock_timestamp()")
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp()")


def test_a_dump_that_is_restored_under_a_running_refresher_is_noticed(
    fleet: Fleet, server: TokenServer, gate: Gate, restored: Restored
) -> None:
    """If it failed, a restore would end each login: spent refresh tokens would be sent while access tokens live (I1)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    assert rotate_linear(first).outcome == "rotated"
    mirror = _mirror(first)
    mirror.publish()
    with restored():
        assert rotate_linear(first).outcome == "rotated"
        mirror.publish()
    assert rotate_linear(second).outcome == "lock_busy"  # until all hosts have said what they have published
    assert epochs.begin_epoch(first.database) is False  # the attempt has begun it
    mirror.publish()
    _open(fleet)
    assert rotate_linear(second).outcome == "in_doubt"
    assert (record_of(second).generation, server.reused) == (2, 0)
    assert len(server.presented["linear"]) == 2


def test_a_host_trusts_its_own_token_file_after_a_restore(
    fleet: Fleet, server: TokenServer, gate: Gate, restored: Restored
) -> None:
    """If it failed, a refresher that claims before its host has reported would send a spent refresh token (I1)."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server, access_token="short", expires_in=5)
    with restored():
        assert rotate_linear(store).outcome == "rotated"
    epochs.begin_epoch(store.database)
    _open(fleet)
    assert rotate_linear(store, force=False).outcome == "in_doubt"
    grant = record_of(store)
    assert (grant.generation, server.reused, len(server.presented["linear"])) == (1, 0, 1)
    # For as long as the token that was published, not for as long as the one in the backup.
    assert grant.expires_at is not None
    assert grant.expires_at > time.time() + 3000


def test_a_host_that_reports_again_makes_a_doubt_no_longer(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a host of agents that is taken over could keep a grant without a token for ever."""
    gate.opened.set()
    store = fleet.host("a")
    grant_id = import_grant(store, server).grant_id
    assert rotate_linear(store).outcome == "rotated"
    ends = []
    for generation in (2, 3):
        fleet.execute(
            "INSERT INTO refresher.seen (name, grant_id, generation, issued_at, expires_at, host) VALUES "
            "('linear', %s, %s, extract(epoch FROM now()), extract(epoch FROM now()) + 99999, 'h')",
            grant_id,
            generation,
        )
        assert rotate_linear(store, force=False).outcome == "in_doubt"
        grant = record_of(store)
        assert grant.generation == generation
        assert grant.expires_at is not None
        ends.append(grant.expires_at)
    assert ends[1] <= ends[0]
    assert ends[0] < time.time() + 3700
