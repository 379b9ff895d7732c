"""The store in PostgreSQL when its network or its database fails: what is certain, what is unknown, and spills."""

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest

from refresher.common import clocks
from refresher.common.secret import Secret
from refresher.daemon.database_loop import Keeper
from refresher.grants import transition
from refresher.grants.record import Doubt, Grant
from refresher.storage.postgres import attempt, leases, settling, spills
from refresher.storage.postgres.database import Database, UnknownOutcome
from refresher.storage.postgres.settling import Sent
from tests.support.command import wait_until
from tests.support.cut_proxy import CutProxy
from tests.support.fleet import Fleet, Rotation, import_grant, record_of, rotate_linear, spill
from tests.support.postgres import Cluster
from tests.support.token_server import Gate, TokenServer


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_confirmation_of_arming_that_is_lost_sends_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    """If it failed, a request would leave without a lease (I1), or a slow database would count as a failed server.

    A fake: the lost confirmation.
    """
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    _lose_confirmation(monkeypatch, lambda: True, took_effect=took_effect, of="arm")
    result = rotate_linear(store)
    assert result.outcome == "storage_failed"
    assert "nothing was sent" in result.detail
    assert len(server.presented["linear"]) == 0
    assert (record_of(store).failures, record_of(store).doubt) == (0, None)
    later = "SELECT attempt, next_at > clock_timestamp() + interval '3 s' FROM refresher.lease"
    assert fleet.execute(later) == [(None, True)]
    monkeypatch.undo()
    assert rotate_linear(store).outcome == "rotated"


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_confirmation_of_settling_that_is_lost_loses_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    """If it failed, a token would be lost or counted twice when a database goes away at the end of a COMMIT."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    _lose_confirmation(monkeypatch, lambda: True, took_effect=took_effect, of="settle")
    assert rotate_linear(store).outcome == "rotated"
    monkeypatch.undo()
    problems = attempt.commit_spills(store.database, store.directories)
    assert problems == []
    assert record_of(store).generation == 1
    assert fleet.execute("SELECT * FROM refresher.orphan") == []
    assert list(spills.find(store.directories)) == []
    assert rotate_linear(store).outcome == "rotated"
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
        import_grant(store, server)
        proxy.only, proxy.cut = of.encode(), cut
        result = rotate_linear(store)
        assert proxy.cuts > 0
        proxy.cut = "never"
        sent = len(server.presented["linear"])
        # The request waits for the confirmation of its lease; what the server answered is stored, or saved on this host.
        assert (result.outcome, sent) == (("storage_failed", 0) if of == "RETURNING 1" else ("rotated", 1))
        fleet.end_lease()
        again = rotate_linear(fleet.host("a"), force=False)
        assert again.outcome in ("rotated", "not_due", "adopted", "transient")
        assert server.reused == 0
        assert list(spills.find(store.directories)) == []
        assert fleet.execute("SELECT * FROM refresher.orphan") == []
        assert rotate_linear(fleet.host("b")).outcome == "rotated"
        assert server.reused == 0


def test_a_database_that_is_cut_off_during_an_exchange_costs_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, a network that is away while a server answers would cost a login."""
    with CutProxy(postgres.port) as proxy:
        store = fleet.host("a", port=proxy.port)
        import_grant(store, server)
        gate.opened.set()
        assert rotate_linear(store).outcome == "rotated"
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
        assert rotate_linear(other).outcome == "in_doubt"
        proxy.cut = "never"
        assert attempt.commit_spills(store.database, store.directories) == []
        assert (record_of(other).generation, record_of(other).doubt) == (2, None)
        assert rotate_linear(other).outcome == "rotated"
        assert server.reused == 0


def test_an_outcome_that_cannot_be_stored_holds_up_a_grant_no_longer_than_a_lease(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, a process that lives on would keep a grant for five minutes after it has given up on it."""
    with CutProxy(postgres.port) as proxy:
        store = fleet.host("a", port=proxy.port)
        import_grant(store, server)
        server.end_login("linear")
        rotation = Rotation(store)
        assert gate.reached.wait(60)
        proxy.cut = "always"
        proxy.break_off()
        gate.opened.set()
        assert rotation.result().outcome == "storage_failed"
        store.release_again()
        proxy.cut = "never"
        with psycopg.connect(fleet.url) as other:
            # Another process that holds the row must not hold up what this one does.
            other.execute("SELECT 1 FROM refresher.lease FOR UPDATE")
            store.release_again()
        keeper = Keeper(store, lambda *_: None)
        released = [("armed", None)]
        wait_until(lambda: fleet.execute("SELECT state, holder_pid FROM refresher.lease") == released, "it is released")
        keeper.stop()


def test_a_token_that_the_database_does_not_take_is_spilled(
    fleet: Fleet, server: TokenServer, gate: Gate, postgres: Cluster
) -> None:
    """If it failed, a token would be lost when the database goes away during an exchange (I6)."""
    store = fleet.host("a")
    import_grant(store, server)
    rotation = Rotation(store)
    assert gate.reached.wait(60)
    fleet.execute("ALTER TABLE refresher.record RENAME TO away")
    gate.opened.set()
    assert rotation.result().outcome == "rotated"
    assert len(list(spills.find(store.directories))) == 1
    fleet.execute("ALTER TABLE refresher.away RENAME TO record")
    fleet.end_lease()
    # Another host cannot know of the spill, and must not send.
    assert record_of(fleet.host("b")).generation == 0
    # Any process of the host that has it stores it, before it does anything else.
    assert rotate_linear(fleet.host("a"), force=False).outcome in ("adopted", "not_due")
    assert record_of(store).generation == 1
    assert list(spills.find(store.directories)) == []
    assert rotate_linear(store).outcome == "rotated"
    assert server.reused == 0


def test_a_spill_is_stored_after_another_has_noted_the_doubt(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a token that a host has saved would be worthless once another host looked at its grant (I6)."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    assert rotate_linear(first).outcome == "rotated"
    rotated = record_of(first)
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
    assert rotate_linear(second, force=False).outcome in ("in_doubt", "not_due")
    assert record_of(second).doubt is not None
    assert attempt.commit_spills(first.database, first.directories) == []
    assert (record_of(second).generation, record_of(second).doubt) == (2, None)


def test_an_answer_is_stored_after_a_promotion_that_a_host_has_reported(
    fleet: Fleet, server: TokenServer, gate: Gate
) -> None:
    """If it failed, the only live token would be put aside, and the one that the promotion has lost be sent (I6)."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    assert rotate_linear(store).outcome == "rotated"
    before = fleet.execute("SELECT bytes, published FROM refresher.record")[0]
    fingerprint = fleet.execute("SELECT fingerprint FROM refresher.lease")[0][0]
    assert rotate_linear(store).outcome == "rotated"
    gate.opened.clear()
    gate.reached.clear()
    rotation = Rotation(store)
    assert gate.reached.wait(60)
    # A promotion loses the second rotation, and the lease of the third.
    fleet.execute("UPDATE refresher.record SET bytes = %s, published = %s, generation = 1", *before)
    fleet.execute(
        "UPDATE refresher.lease SET generation = 1, fingerprint = %s, attempt = NULL, state = NULL, armed_at = NULL, "
        "until = NULL, next_at = clock_timestamp()",
        fingerprint,
    )
    fleet.execute("DELETE FROM refresher.spent WHERE fingerprint = %s", fingerprint)
    other = fleet.host("b")
    grant_id = record_of(other).grant_id
    now = clocks.now().wall
    fleet.execute(
        "INSERT INTO refresher.seen (name, grant_id, generation, issued_at, expires_at, host) "
        "VALUES ('linear', %s, 2, %s, %s, 'c')",
        grant_id,
        now,
        now + 3600,
    )
    fleet.execute("UPDATE refresher.lease SET doubt_at = NULL")
    assert rotate_linear(other).outcome == "in_doubt"
    assert record_of(other).generation == 2
    gate.opened.set()
    assert rotation.result().outcome == "rotated"
    assert (record_of(other).generation, record_of(other).doubt) == (3, None)
    assert fleet.execute("SELECT 1 FROM refresher.orphan") == []
    assert rotate_linear(other).outcome == "rotated"
    assert server.reused == 0


def test_a_note_that_waits_for_a_doubt_keeps_it(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a refresh token that may be spent would be sent again (I1)."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    assert rotate_linear(store).outcome == "rotated"
    with store.held("linear", stopping=lambda: False) as held:
        grant = held.recover().record
        assert isinstance(grant, Grant)
    with store.database.transaction() as cursor:
        now = attempt.read_clocks(cursor)
        keys = store.directories.keys
        stored = settling.load(cursor, "linear", now, keys, lock=True)
        doubtful = transition.mark_interrupted(grant, "words", doubt=Doubt(since=now.here), now=now.here)
        settling.write(cursor, stored, doubtful, now, keys)
        noting = threading.Thread(target=lambda: held.note(grant, end_warned=1.0))
        noting.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_until(lambda: bool(fleet.execute(waiting)), "the note waits for the lease")
    noting.join(60)
    assert record_of(store).doubt is not None
    assert record_of(store).end_warned == 1.0


def test_an_earlier_report_of_a_host_hides_no_later_one(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a restored database would not be recognised, and a spent refresh token be sent (I1)."""
    gate.opened.set()
    store = fleet.host("a")
    grant_id = import_grant(store, server).grant_id
    report = "INSERT INTO refresher.seen (name, grant_id, generation, host) VALUES ('linear', %s, %s, 'h')"
    for reported in (("another", 7), (grant_id, 0), (grant_id, 1), (grant_id, 3), (grant_id, 2)):
        fleet.execute(report + " ON CONFLICT DO NOTHING", *reported)
    assert fleet.execute("SELECT grant_id, generation FROM refresher.seen") == [(grant_id, 3)]


def test_a_spill_whose_writing_was_cut_off_is_found(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a kill between two steps of a spill would lose the only copy of a token (I6)."""
    gate.opened.set()
    store = fleet.host("a")
    import_grant(store, server)
    assert rotate_linear(store).outcome == "rotated"
    grant = record_of(store)
    path = spill(store.directories, grant, "x" * 43)
    path.rename(path.with_suffix(spills.INCOMPLETE))
    half = store.directories.grants / f"linear.{uuid.uuid4().hex}{spills.INCOMPLETE}"
    half.write_bytes(path.with_suffix(spills.INCOMPLETE).read_bytes()[:100])
    half.chmod(0o600)
    assert attempt.commit_spills(store.database, store.directories) == []
    assert half.exists(), "a process may still be writing it"
    os.utime(half, (0, 0))
    assert attempt.commit_spills(store.database, store.directories) == []
    assert record_of(store).generation == 2
    assert list(spills.find(store.directories)) == []
    assert [each.name for each in store.directories.grants.glob("*.aside.*")] != []


def test_a_spill_that_the_database_refuses_holds_up_no_other(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, one record that the database does not take would end all rotations of a host."""
    gate.opened.set()
    store = fleet.host("a")
    grant = import_grant(store, server)
    spill(store.directories, grant, generation=2**63)
    (problem,) = attempt.commit_spills(store.database, store.directories)
    assert "out of range" in problem.problem
