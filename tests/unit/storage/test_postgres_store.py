"""The store in PostgreSQL, against a real one: what happens when holders stop, lose their lease, or get no answer.

Where a test would wait for the end of a lease, it sets that end into the past: the clock of the database decides.
"""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from refresher.common import clocks
from refresher.common.errors import GrantFileError, ImportRefused, StorageError
from refresher.common.secret import Secret
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres import epochs, leases, migrations
from refresher.storage.postgres.changes import Changes
from refresher.storage.postgres.database import Database
from tests.support.fleet import Fleet, Rotation, import_grant, record_of, rotate_linear
from tests.support.postgres import Cluster
from tests.support.token_server import Gate, TokenServer


def test_an_answer_counts_after_another_has_noted_the_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a holder that was paused for long would throw away the only copy of a refresh token (I6)."""
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    rotation = Rotation(first)
    assert gate.reached.wait(60)
    fleet.end_lease()
    assert rotate_linear(second, force=False).outcome == "in_doubt" or record_of(second).doubt is not None
    assert record_of(second).doubt is not None
    gate.opened.set()
    assert rotation.result().outcome == "rotated"
    grant = record_of(second)
    assert (grant.generation, grant.doubt) == (1, None)
    assert server.lives(grant.access_token.reveal() if grant.access_token else "")
    assert rotate_linear(second).outcome == "rotated"
    assert server.reused == 0
    assert fleet.execute("SELECT * FROM refresher.orphan") == []


def test_an_open_lease_that_ends_leaves_no_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, each holder that dies before it sends would put its grant in doubt."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    lease = leases.claim(first.database, "linear")
    assert lease is not None
    fleet.end_lease()
    assert rotate_linear(second).outcome == "rotated"
    with pytest.raises(leases.NotArmed, match="another refresher has taken over"):
        leases.arm(first.database, lease)
    assert server.presented["linear"].__len__() == 1
    assert record_of(second).doubt is None


def test_an_armed_lease_that_ends_leaves_a_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, the refresh token of a holder that was killed would be sent again, and the login would end (I1)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    assert rotate_linear(first).outcome == "rotated"
    lease = leases.claim(first.database, "linear")
    assert lease is not None
    leases.arm(first.database, lease)
    assert rotate_linear(second).outcome == "lock_busy"
    fleet.end_lease()
    assert rotate_linear(second).outcome == "in_doubt"
    assert record_of(second).doubt is not None
    assert len(server.presented["linear"]) == 1


def test_what_is_not_armed_is_not_sent(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a holder that was stopped before it sent would send what another has sent meanwhile (I1)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    arm = leases.arm

    def stopped(database: Database, lease: leases.Lease, *, again: bool) -> None:
        monkeypatch.setattr(leases, "arm", arm)
        fleet.end_lease()
        assert Rotation(second).result().outcome == "rotated"
        arm(database, lease, again=again)

    monkeypatch.setattr(leases, "arm", stopped)
    result = rotate_linear(first, seen=0)
    assert result.outcome == "adopted", result
    assert len(server.presented["linear"]) == 1
    assert record_of(first).generation == 1


def test_a_late_rejection_does_not_end_what_another_has_rotated(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a slow answer would end a login that another refresher has just renewed."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    with first.held("linear", stopping=lambda: False, wait=0.0) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        late = held.begin(stored, stored.record, lambda: None)
        late.before_first_byte()
        fleet.end_lease()
        fleet.execute("UPDATE refresher.lease SET state = 'open', armed_at = NULL")  # as if it had not been armed
        assert rotate_linear(second).outcome == "rotated"
        dead = msgspec.structs.replace(stored.record, dead=True)
        there = late.persist(dead, until_saved=False)
        assert (there.generation, there.dead) == (1, False)
    assert not record_of(second).dead


def test_a_token_for_a_grant_that_was_replaced_is_kept(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, an answer that fits no record would be thrown away, or stored over the login of a person (I6)."""
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    rotation = Rotation(first)
    assert gate.reached.wait(60)
    fleet.end_lease()
    parsed = import_request.parse("linear", json.dumps(server.grant("linear")).encode(), clocks.now())
    replaced = store_grant(second, parsed, replace=True, if_absent=False, stopping=lambda: False, just_issued=True)
    gate.opened.set()
    rotation.result()
    assert record_of(first).grant_id == replaced.grant.grant_id
    assert len(fleet.execute("SELECT * FROM refresher.orphan WHERE name = 'linear'")) == 1


def test_a_record_that_contradicts_its_columns_is_refused(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a record that was restored in part would send a refresh token that is spent."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    before = fleet.execute("SELECT bytes FROM refresher.record")[0][0]
    rotate_linear(store)
    fleet.execute("UPDATE refresher.record SET bytes = %s", before)
    with pytest.raises(GrantFileError, match="contradicts its columns"):
        store.load("linear")
    assert rotate_linear(store).outcome == "invalid_grant_file"
    assert len(server.presented["linear"]) == 1
    parsed = import_request.parse("linear", json.dumps(server.grant("linear")).encode(), clocks.now())
    store_grant(store, parsed, replace=True, if_absent=False, stopping=lambda: False, just_issued=True)
    assert record_of(store).generation == 2
    assert len(fleet.execute("SELECT * FROM refresher.orphan")) == 1


def test_two_imports_of_one_token_at_once_store_it_once(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, two hosts would store one refresh token under two names, and revoke the login (I3)."""
    fields = json.dumps(server.grant("linear")).encode()
    errors: list[str] = []

    def one(name: str) -> None:
        try:
            parsed = import_request.parse(name, fields, clocks.now())
            store_grant(fleet.host(name), parsed, replace=False, if_absent=False, stopping=lambda: False)
        except ImportRefused as error:
            errors.append(str(error))

    threads = [threading.Thread(target=one, args=(f"name-{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 4
    assert len(fleet.execute("SELECT name FROM refresher.lease WHERE kind = 'grant'")) == 1
    assert fleet.execute("SELECT name FROM refresher.lease WHERE kind = 'empty'") == []


def test_a_new_epoch_stops_what_was_begun_and_doubts_what_was_due(
    fleet: Fleet, server: TokenServer, gate: Gate
) -> None:
    """If it failed, a promoted standby without the last commits would let a spent refresh token be sent (I1)."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    assert rotate_linear(store).outcome == "rotated"
    import_grant(store, server, "resting")
    import_grant(store, server, "held")
    lease = leases.claim(store.database, "held")
    assert lease is not None
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp() WHERE name = 'linear'")
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp() + interval '1 h' WHERE name = 'resting'")
    # As a promotion would show it: the present timeline is not known, and an earlier one is.
    fleet.execute("UPDATE refresher.epoch SET timeline = '00000000'")
    with pytest.raises(leases.NotArmed):
        leases.arm(store.database, lease)
    assert leases.claim(store.database, "linear") is None
    assert epochs.begin_epoch(fleet.host("b").database) is True
    assert leases.claim(store.database, "linear") is None
    fleet.execute("UPDATE refresher.epoch SET opens_at = clock_timestamp()")
    assert rotate_linear(store).outcome == "in_doubt"
    with pytest.raises(leases.NotArmed):
        leases.arm(store.database, lease._replace(attempt=lease.attempt))
    doubts = dict(fleet.execute("SELECT name, doubt_at IS NOT NULL FROM refresher.lease WHERE name <> 'linear'"))
    assert doubts == {"resting": False, "held": False}
    assert fleet.execute("SELECT state FROM refresher.lease WHERE name = 'held'") == [("armed",)]


def test_no_transaction_spans_an_exchange(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a slow authorization server would hold back vacuum, and a pooler would have no connection left."""
    store = fleet.host("a")
    import_grant(store, server)
    rotation = Rotation(store)
    assert gate.reached.wait(60)
    open_ones = fleet.execute(
        "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL OR state LIKE 'idle in transaction%')"
    )
    gate.opened.set()
    rotation.result()
    assert open_ones == []


def test_a_newer_schema_is_refused(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, an old refresher would write records that newer ones cannot use."""
    fleet.execute("INSERT INTO refresher.version (number) VALUES (999)")
    with pytest.raises(StorageError, match="use the newer refresher"):
        fleet.host("a").listing()
    with pytest.raises(StorageError, match="use the newer refresher"):
        migrations.migrate(fleet.host("a").database)


def test_many_that_start_at_once_make_one_schema(tmp_path: Path, postgres: Cluster) -> None:
    """If it failed, two replicas that start together would end with an error."""
    applied: list[list[int]] = []
    with postgres.database() as url:
        threads = [threading.Thread(target=lambda: applied.append(_migrate(url))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(map(len, applied)) == [0, 0, 0, 0, migrations.LATEST]


def _migrate(url: str) -> list[int]:
    database = Database(url)
    try:
        return migrations.migrate(database)
    finally:
        database.close()


def test_what_is_committed_late_is_published_too(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a mirror would miss a rotation whose transaction took longer than those of others."""
    gate.opened.set()
    store = fleet.host("a")
    for name in ("early", "late", "quiet"):
        import_grant(store, server, name)
        terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
        assert rotate(store, Order(name=name, seen=0, force=True), terms) is not None
    changes = Changes(store.database)
    is_all, copies = changes.read()
    assert (is_all, {copy.name for copy in copies}) == (True, {"early", "late", "quiet"})
    touch = "UPDATE refresher.record SET published = published || ' ', xid = pg_current_xact_id() WHERE name = %s"
    with psycopg.connect(fleet.url) as slow:
        slow.execute(touch, ("late",))
        for _ in range(20):
            fleet.execute(touch, "early")
            is_all, copies = changes.read()
            assert (is_all, [copy.name for copy in copies]) == (False, ["early"])
        slow.commit()
    _, copies = changes.read()
    assert "late" in {copy.name for copy in copies}
    _, copies = changes.read()
    assert list(copies) == []


def test_a_report_of_impossible_generations_changes_nothing(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a host of agents that is taken over could put every grant in doubt, with any generation."""
    gate.opened.set()
    store = fleet.host("a")
    grant_id = import_grant(store, server).grant_id
    assert rotate_linear(store).outcome == "rotated"
    fleet.execute(
        "INSERT INTO refresher.seen (name, grant_id, generation, issued_at, expires_at, host) "
        "VALUES ('linear', %s, 1000000, 0, 0, 'h')",
        grant_id,
    )
    assert rotate_linear(store).outcome == "rotated"
    assert (record_of(store).generation, record_of(store).doubt) == (2, None)
    assert fleet.execute("SELECT 1 FROM refresher.seen") == []


def test_a_process_that_is_stopped_in_a_transaction_loses_its_locks(fleet: Fleet) -> None:
    """If it failed, a host that sleeps would keep the grants of all others from being rotated."""
    with fleet.host("a").database.transaction() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("15s",)


def test_a_demand_that_counts_for_nothing_is_not_kept(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a host of agents that is taken over could fill the database."""
    import_grant(fleet.host("a"), server)
    fleet.execute("INSERT INTO refresher.demand (name, generation) SELECT 'linear', g FROM generate_series(0, 50) g")
    fleet.execute("INSERT INTO refresher.demand (name, generation) VALUES ('nobody', 0)")
    assert fleet.execute("SELECT name, generation FROM refresher.demand") == [("linear", 0)]
    with pytest.raises(psycopg.errors.CheckViolation):
        fleet.execute("INSERT INTO refresher.demand VALUES ('linear', 0, repeat('x', 2000))")


def test_the_oldest_spent_tokens_of_a_grant_are_forgotten(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, the table of spent refresh tokens would grow with each rotation for ever."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    fleet.execute(
        "INSERT INTO refresher.spent SELECT md5(i::text), 'linear', clock_timestamp() - interval '1 h' * i "
        "FROM generate_series(1, 300) AS i"
    )
    for _ in range(64):
        assert rotate_linear(store).outcome == "rotated"
    kept = [row[0] for row in fleet.execute("SELECT fingerprint FROM refresher.spent WHERE name = 'linear'")]
    assert len(kept) == 256
    assert Secret(server.presented["linear"][0]).fingerprint() in kept
    assert fleet.execute("SELECT 1 WHERE md5('300') = ANY(%s)", kept) == []


def test_an_outcome_that_counts_no_more_is_not_reported(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a person would be told of a failure that another refresher is settling."""
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    server.end_login("linear")
    rotation = Rotation(first)
    assert gate.reached.wait(90)
    fleet.end_lease()
    assert rotate_linear(second, force=False).outcome in ("in_doubt", "transient", "not_due")
    with second.held("linear", stopping=lambda: False, wait=0.0):
        gate.opened.set()
        assert rotation.result().outcome == "lock_busy"
    assert record_of(first).dead is False


@pytest.mark.parametrize("cause", ["its lease has ended", "a promotion"])
def test_a_lease_that_ends_before_it_is_armed_is_reported(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """If it failed, a grant that a slow database never lets rotate would count as rotated by another process."""
    store = fleet.host("a")
    import_grant(store, server)
    arm = leases.arm

    def late(*arguments: Any, **named: Any) -> None:
        if cause == "a promotion":
            fleet.execute("UPDATE refresher.epoch SET timeline = '00000000'")
            epochs.begin_epoch(fleet.host("b").database)
        else:
            fleet.execute("UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s'")
        arm(*arguments, **named)

    monkeypatch.setattr(leases, "arm", late)
    result = rotate_linear(store, seen=-1)
    assert (result.outcome, "nothing was sent" in result.detail) == ("storage_failed", True), result
    # What a promotion has armed stays so: it may have lost that another has sent.
    expected = ("armed",) if cause == "a promotion" else (None,)
    assert fleet.execute("SELECT state FROM refresher.lease") == [expected]
    assert server.presented["linear"] == []
