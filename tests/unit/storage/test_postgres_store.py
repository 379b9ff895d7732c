"""The store in PostgreSQL, against a real one: what happens when holders stop, lose their lease, or get no answer.

Where a test would wait for the end of a lease, it sets that end into the past: the clock of the database decides.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
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
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres import attempt, epochs, leases, migrations, spills
from refresher.storage.postgres.changes import Changes
from refresher.storage.postgres.database import Database, UnknownOutcome
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.postgres.settling import Sent
from tests.support.cut_proxy import CutProxy
from tests.support.fake_state import directories
from tests.support.postgres import Cluster
from tests.support.token_server import Gate, TokenServer

LIFE = 3600.0


class Fleet:
    """Hosts with one database."""

    def __init__(self, root: Path, url: str) -> None:
        self._root = root
        self.url = url
        self._stores: list[PostgresStore] = []

    def host(self, name: str, port: int | None = None) -> PostgresStore:
        """Return a store as a process on the host ``name`` opens it, by way of a proxy at ``port``."""
        url = self.url if port is None else re.sub(r":\d+/", f":{port}/", self.url)
        store = PostgresStore(url, directories(self._root / name))
        self._stores.append(store)
        return store

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def end_lease(self) -> None:
        """Let the lease of each holder end, as after half a minute; their sessions end too."""
        self.execute(
            "UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s', next_at = clock_timestamp(), "
            "armed_at = armed_at - interval '10 min', holder_pid = NULL WHERE attempt IS NOT NULL"
        )

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def fleet(tmp_path: Path, postgres: Cluster) -> Iterator[Fleet]:
    with postgres.database() as url:
        made = Fleet(tmp_path, url)
        migrations.migrate(made.host("schema").database)
        yield made
        made.close()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[TokenServer]:
    """A server that ends the login at the first reuse, and answers when ``gate`` is opened."""
    with TokenServer(lambda _: LIFE, gate, grace=0) as made:
        yield made
        gate.opened.set()


def _import(store: PostgresStore, server: TokenServer, name: str = "linear") -> Grant:
    parsed = import_request.parse(name, json.dumps(server.grant(name)).encode(), clocks.now())
    return store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False).grant


def _rotate(store: PostgresStore, *, force: bool = True, seen: int = 10**6) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
    result = rotate(store, Order(name="linear", seen=seen, force=force), terms)
    assert result is not None
    return result


class Rotation:
    """A rotation in a thread."""

    def __init__(self, store: PostgresStore) -> None:
        self._results: list[Result] = []
        self._thread = threading.Thread(target=lambda: self._results.append(_rotate(store)))
        self._thread.start()

    def result(self) -> Result:
        self._thread.join(90)
        assert self._results
        return self._results[0]


def _record(store: PostgresStore) -> Grant:
    record = store.load("linear").record
    assert isinstance(record, Grant)
    return record


def _refresh_token(store: PostgresStore) -> str:
    token = _record(store).refresh_token
    assert token is not None
    return token.reveal()


def test_an_answer_counts_after_another_has_noted_the_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a holder that was paused for long would throw away the only copy of a refresh token (I6)."""
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    rotation = Rotation(first)
    assert gate.reached.wait(60)
    fleet.end_lease()
    assert _rotate(second, force=False).outcome == "in_doubt" or _record(second).doubt is not None
    assert _record(second).doubt is not None
    gate.opened.set()
    assert rotation.result().outcome == "rotated"
    grant = _record(second)
    assert (grant.generation, grant.doubt) == (1, None)
    assert server.lives(grant.access_token.reveal() if grant.access_token else "")
    assert _rotate(second).outcome == "rotated"
    assert server.reused == 0
    assert fleet.execute("SELECT * FROM refresher.orphan") == []


def test_an_open_lease_that_ends_leaves_no_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, each holder that dies before it sends would put its grant in doubt."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    lease = leases.claim(first.database, "linear")
    assert lease is not None
    fleet.end_lease()
    assert _rotate(second).outcome == "rotated"
    with pytest.raises(leases.NotArmed, match="another refresher has taken over"):
        leases.arm(first.database, lease)
    assert server.presented["linear"].__len__() == 1
    assert _record(second).doubt is None


def test_an_armed_lease_that_ends_leaves_a_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, the refresh token of a holder that was killed would be sent again, and the login would end (I1)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    assert _rotate(first).outcome == "rotated"
    lease = leases.claim(first.database, "linear")
    assert lease is not None
    leases.arm(first.database, lease)
    assert _rotate(second).outcome == "lock_busy"
    fleet.end_lease()
    assert _rotate(second).outcome == "in_doubt"
    assert _record(second).doubt is not None
    assert len(server.presented["linear"]) == 1


def test_what_is_not_armed_is_not_sent(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a holder that was stopped before it sent would send what another has sent meanwhile (I1)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    arm = leases.arm

    def stopped(database: Database, lease: leases.Lease, *, again: bool) -> None:
        monkeypatch.setattr(leases, "arm", arm)
        fleet.end_lease()
        assert Rotation(second).result().outcome == "rotated"
        arm(database, lease, again=again)

    monkeypatch.setattr(leases, "arm", stopped)
    result = _rotate(first)
    assert result.outcome == "adopted", result
    assert len(server.presented["linear"]) == 1
    assert _record(first).generation == 1


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_confirmation_of_arming_that_is_lost_sends_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    """If it failed, a request would leave without a lease that others see (I1). A fake: the lost confirmation."""
    gate.opened.set()
    store = fleet.host("a")
    _import(store, server)
    _lose_confirmation(monkeypatch, lambda: True, took_effect=took_effect, of="arm")
    result = _rotate(store)
    assert result.outcome == "transient"
    assert "nothing was sent" in result.detail
    assert len(server.presented["linear"]) == 0
    monkeypatch.undo()
    assert _rotate(store).outcome == "rotated"


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_confirmation_of_settling_that_is_lost_loses_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    """If it failed, a token would be lost or counted twice when a database goes away at the end of a COMMIT."""
    gate.opened.set()
    store = fleet.host("a")
    _import(store, server)
    _lose_confirmation(monkeypatch, lambda: True, took_effect=took_effect, of="settle")
    assert _rotate(store).outcome == "rotated"
    monkeypatch.undo()
    problems = attempt.commit_spills(store.database, store.directories)
    assert problems == []
    assert _record(store).generation == 1
    assert fleet.execute("SELECT * FROM refresher.orphan") == []
    assert list(spills.find(store.directories)) == []
    assert _rotate(store).outcome == "rotated"
    assert server.reused == 0


def _lose_confirmation(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[], bool], *, took_effect: bool, of: str
) -> None:
    """Lose the confirmation of the COMMIT of ``leases.arm`` or of a settlement; it took effect or not."""
    commit = Database._commit
    statements: list[str] = []
    target, name = (leases, "arm") if of == "arm" else (attempt, "_settle")
    inner = getattr(target, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        statements.append(of)
        try:
            return inner(*arguments, **named)
        finally:
            statements.clear()

    def lost(database: Database, link: Any) -> None:
        if not statements or not when():
            return commit(database, link)
        if took_effect:
            commit(database, link)
        else:
            link.connection.execute("ROLLBACK")
            link.close()
        raise UnknownOutcome("the database did not confirm a COMMIT")

    monkeypatch.setattr(target, name, watched)
    monkeypatch.setattr(Database, "_commit", lost)


@pytest.mark.parametrize("cut", ["before", "confirmation"])
@pytest.mark.parametrize("of", ["RETURNING 1", "last_attempt = "])
def test_a_connection_that_is_cut_at_a_commit_loses_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster, cut: Any, of: str
) -> None:
    """If it failed, a network that breaks at the wrong moment would lose a token, or let one be sent twice."""
    gate.opened.set()
    with CutProxy(postgres.port) as proxy:
        store = fleet.host("a", port=proxy.port)
        _import(store, server)
        proxy.only, proxy.cut = of.encode(), cut
        result = _rotate(store)
        assert proxy.cuts > 0
        proxy.cut = "never"
        sent = len(server.presented["linear"])
        # The request waits for the confirmation of its lease; what the server answered is stored, or saved on this host.
        assert (result.outcome, sent) == (("transient", 0) if of == "RETURNING 1" else ("rotated", 1))
        fleet.end_lease()
        again = _rotate(fleet.host("a"), force=False)
        assert again.outcome in ("rotated", "not_due", "adopted", "transient")
        assert server.reused == 0
        assert list(spills.find(store.directories)) == []
        assert fleet.execute("SELECT * FROM refresher.orphan") == []
        assert _rotate(fleet.host("b")).outcome == "rotated"
        assert server.reused == 0


def test_a_database_that_is_cut_off_during_an_exchange_costs_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, a network that is away while a server answers would cost a login."""
    with CutProxy(postgres.port) as proxy:
        store = fleet.host("a", port=proxy.port)
        _import(store, server)
        gate.opened.set()
        assert _rotate(store).outcome == "rotated"
        gate.opened.clear()
        gate.reached.clear()
        rotation = Rotation(store)
        assert gate.reached.wait(60)
        proxy.cut = "always"
        proxy.break_off()
        gate.opened.set()
        assert rotation.result().outcome == "rotated"
        assert len(list(spills.find(store.directories))) == 1
        fleet.end_lease()
        other = fleet.host("b")
        assert _rotate(other).outcome == "in_doubt"
        proxy.cut = "never"
        assert attempt.commit_spills(store.database, store.directories) == []
        assert (_record(other).generation, _record(other).doubt) == (2, None)
        assert _rotate(other).outcome == "rotated"
        assert server.reused == 0


def test_a_token_that_the_database_does_not_take_is_spilled(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, a token would be lost when the database goes away during an exchange (I6)."""
    store = fleet.host("a")
    _import(store, server)
    rotation = Rotation(store)
    assert gate.reached.wait(60)
    fleet.execute("ALTER TABLE refresher.record RENAME TO away")
    gate.opened.set()
    assert rotation.result().outcome == "rotated"
    assert len(list(spills.find(store.directories))) == 1
    fleet.execute("ALTER TABLE refresher.away RENAME TO record")
    fleet.end_lease()
    # Another host cannot know of the spill, and must not send.
    assert _record(fleet.host("b")).generation == 0
    # Any process of the host that has it stores it, before it does anything else.
    assert _rotate(fleet.host("a"), force=False).outcome in ("adopted", "not_due")
    assert _record(store).generation == 1
    assert list(spills.find(store.directories)) == []
    assert _rotate(store).outcome == "rotated"
    assert server.reused == 0


def test_a_spill_is_stored_after_another_has_noted_the_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a token that a host has saved would be worthless once another host looked at its grant (I6)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    assert _rotate(first).outcome == "rotated"
    rotated = _record(first)
    fleet.execute("UPDATE refresher.lease SET last_attempt = NULL")
    spent = [row[0] for row in fleet.execute("SELECT fingerprint FROM refresher.spent")]
    assert spent
    lease = leases.claim(first.database, "linear")
    assert lease is not None
    leases.arm(first.database, lease)
    sent = Sent(lease.attempt, "linear", rotated.grant_id, rotated.generation, rotated.fingerprint())
    newer = msgspec.structs.replace(rotated, generation=2, refresh_token=Secret("x" * 43))
    spills.save(first.directories, sent, newer)
    fleet.end_lease()
    assert _rotate(second, force=False).outcome in ("in_doubt", "not_due")
    assert _record(second).doubt is not None
    assert attempt.commit_spills(first.database, first.directories) == []
    assert (_record(second).generation, _record(second).doubt) == (2, None)


def test_a_late_rejection_does_not_end_what_another_has_rotated(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a slow answer would end a login that another refresher has just renewed."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    with first.held("linear", stopping=lambda: False, wait=0.0) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        late = held.begin(stored, stored.record, lambda: None)
        late.before_first_byte()
        fleet.end_lease()
        fleet.execute("UPDATE refresher.lease SET state = 'open', armed_at = NULL")  # as if it had not been armed
        assert _rotate(second).outcome == "rotated"
        dead = msgspec.structs.replace(stored.record, dead=True)
        there = late.persist(dead, until_saved=False)
        assert (there.generation, there.dead) == (1, False)
    assert not _record(second).dead


def test_a_token_for_a_grant_that_was_replaced_is_kept(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, an answer that fits no record would be thrown away, or stored over the login of a person (I6)."""
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    rotation = Rotation(first)
    assert gate.reached.wait(60)
    fleet.end_lease()
    parsed = import_request.parse("linear", json.dumps(server.grant("linear")).encode(), clocks.now())
    replaced = store_grant(second, parsed, replace=True, if_absent=False, stopping=lambda: False, just_issued=True)
    gate.opened.set()
    rotation.result()
    assert _record(first).grant_id == replaced.grant.grant_id
    assert len(fleet.execute("SELECT * FROM refresher.orphan WHERE name = 'linear'")) == 1


def test_a_record_that_contradicts_its_columns_is_refused(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a record that was restored in part would send a refresh token that is spent."""
    gate.opened.set()
    store = fleet.host("a")
    _import(store, server)
    before = fleet.execute("SELECT bytes FROM refresher.record")[0][0]
    _rotate(store)
    fleet.execute("UPDATE refresher.record SET bytes = %s", before)
    with pytest.raises(GrantFileError, match="contradicts its columns"):
        store.load("linear")
    assert _rotate(store).outcome == "invalid_grant_file"
    assert len(server.presented["linear"]) == 1
    parsed = import_request.parse("linear", json.dumps(server.grant("linear")).encode(), clocks.now())
    store_grant(store, parsed, replace=True, if_absent=False, stopping=lambda: False, just_issued=True)
    assert _record(store).generation == 2
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
    _import(store, server)
    assert _rotate(store).outcome == "rotated"
    _import(store, server, "resting")
    _import(store, server, "held")
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
    assert _rotate(store).outcome == "in_doubt"
    with pytest.raises(leases.NotArmed):
        leases.arm(store.database, lease._replace(attempt=lease.attempt))
    doubts = dict(fleet.execute("SELECT name, doubt_at IS NOT NULL FROM refresher.lease WHERE name <> 'linear'"))
    assert doubts == {"resting": False, "held": False}
    assert fleet.execute("SELECT state FROM refresher.lease WHERE name = 'held'") == [("armed",)]


def test_no_transaction_spans_an_exchange(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a slow authorization server would hold back vacuum, and a pooler would have no connection left."""
    store = fleet.host("a")
    _import(store, server)
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


def _make_due(fleet: Fleet, servers: int, each: int) -> None:
    """Store grants of several servers that are due, without a record: claims read no record."""
    fleet.execute(
        "INSERT INTO refresher.server (origin) SELECT 'https://as-' || s || '.example' FROM generate_series(1, %s) s",
        servers,
    )
    fleet.execute(
        "INSERT INTO refresher.lease (name, kind, grant_id, generation, fingerprint, server, next_at) "
        "SELECT 'g-' || s || '-' || n, 'grant', 'id', 1, s || '-' || n, 'https://as-' || s || '.example', "
        "clock_timestamp() - interval '1 s' FROM generate_series(1, %s) s, generate_series(1, %s) n",
        servers,
        each,
    )


def _claim(store: PostgresStore, most: int = 128, each: int = 8, **rooms: int) -> list[str]:
    return [*store.claim_due(most, each=each, rooms=rooms)]


def test_refreshers_share_what_is_due(fleet: Fleet) -> None:
    """If it failed, two refreshers would claim one grant, or a grant that is due would be claimed by none."""
    _make_due(fleet, 5, 8)
    claimed: list[list[str]] = []
    stores = [fleet.host(f"host-{number}") for number in range(4)]

    def one(store: PostgresStore) -> None:
        mine: list[str] = []
        for _ in range(10):  # a server that another is claiming from is skipped
            mine += _claim(store, most=4)
        claimed.append(mine)

    threads = [threading.Thread(target=one, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    names = [name for each in claimed for name in each]
    assert len(names) == len(set(names)) == 40


def test_the_budget_of_a_server_holds_across_refreshers(fleet: Fleet) -> None:
    """If it failed, ten refreshers would send ten times as many requests as a server accepts."""
    _make_due(fleet, 1, 500)
    first, second = fleet.host("a"), fleet.host("b")
    began = clocks.now().wall
    names = [name for _ in range(10) for store in (first, second) for name in _claim(store, each=30)]
    most = 40 + 20 * (clocks.now().wall - began) + 1
    assert 40 <= len(names) <= most
    assert len(names) == len(set(names))


def test_a_server_that_is_busy_is_left_alone_and_the_others_are_served(fleet: Fleet) -> None:
    """If it failed, one server that is away would hold up the grants of all others."""
    _make_due(fleet, 3, 20)
    store = fleet.host("a")
    fleet.execute(
        "UPDATE refresher.server SET held_until = clock_timestamp() + interval '1 h' WHERE origin LIKE '%%as-1%%'"
    )
    names = _claim(store, **{"https://as-2.example": 1})
    assert sorted({name[:4] for name in names}) == ["g-2-", "g-3-"]
    assert sum(name.startswith("g-2-") for name in names) == 1
    assert sum(name.startswith("g-3-") for name in names) == 8


def test_the_grant_of_a_dead_holder_becomes_due(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a grant whose holder was killed would never be rotated again."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    _import(first, server)
    assert _claim(first) == ["linear"]
    assert _claim(second) == []
    fleet.end_lease()
    assert second.claim_due(1, each=1, rooms={}) == {"linear": server.url}
    assert _rotate(second, force=False).outcome == "rotated"
    assert _claim(second) == []


def test_what_is_committed_late_is_published_too(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a mirror would miss a rotation whose transaction took longer than those of others."""
    gate.opened.set()
    store = fleet.host("a")
    for name in ("early", "late", "quiet"):
        _import(store, server, name)
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
    grant_id = _import(store, server).grant_id
    assert _rotate(store).outcome == "rotated"
    fleet.execute(
        "INSERT INTO refresher.seen (name, grant_id, generation, issued_at, expires_at, host) "
        "VALUES ('linear', %s, 1000000, 0, 0, 'h')",
        grant_id,
    )
    assert _rotate(store).outcome == "rotated"
    assert (_record(store).generation, _record(store).doubt) == (2, None)
    assert fleet.execute("SELECT 1 FROM refresher.seen") == []
