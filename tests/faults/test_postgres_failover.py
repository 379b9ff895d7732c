"""A promoted standby that lacks the last commits of its primary, both real."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from refresher.common import clocks
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres import attempt, leases, migrations, spills
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.fake_state import directories
from tests.support.postgres import FAST, Cluster, find_binaries, running
from tests.support.token_server import Gate, TokenServer


class Pair:
    """A primary and its standby."""

    def __init__(self, primary: Cluster, standby: Cluster, root: Path, stack: ExitStack) -> None:
        self.primary, self.standby = primary, standby
        self._root = root
        self._stack = stack
        # libpq takes whichever accepts writes.
        ports = f"{primary.port},{standby.port}"
        self.url = f"postgresql://owner@127.0.0.1,127.0.0.1/postgres?port={ports}&target_session_attrs=read-write"

    def host(self, name: str) -> PostgresStore:
        store = PostgresStore(self.url, directories(self._root / name))
        self._stack.callback(store.close)
        return store

    def catch_up(self) -> None:
        """Wait until the standby has all commits."""
        ((sent,),) = self.primary.execute("SELECT pg_current_wal_lsn()")

        def has_all() -> bool:
            ((there,),) = self.standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{sent}'::pg_lsn")
            return bool(there)

        wait_until(has_all, "the standby has all commits")

    def hold_back(self) -> None:
        """Let the standby receive nothing more."""
        with psycopg.connect(self.standby.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: not self.primary.execute("SELECT 1 FROM pg_stat_replication"), "the standby receives nothing"
        )

    def synchronous(self, *, on: bool = True) -> None:
        """Let each commit wait for the standby, or no longer."""
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            names = "standby" if on else ""
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            connection.execute("SELECT pg_reload_conf()")
        if on:
            wait_until(self._waits, "commits wait for the standby")

    def _waits(self) -> bool:
        return self.primary.execute("SELECT sync_state FROM pg_stat_replication") == [("sync",)]

    def fail_over(self) -> None:
        self.primary.stop("immediate")
        self.standby.promote()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    need(None if find_binaries() else "PostgreSQL is not installed: apt-get install postgresql")
    with ExitStack() as stack:
        primary = stack.enter_context(running(*FAST))
        standby = stack.enter_context(running(*FAST, standby_of=primary))
        made = Pair(primary, standby, tmp_path, stack)
        migrations.migrate(made.host("schema").database)
        yield made


def _import(store: PostgresStore, server: TokenServer, name: str) -> None:
    parsed = import_request.parse(name, json.dumps(server.grant(name)).encode(), clocks.now())
    store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False)


def _rotate(store: PostgresStore, name: str, *, force: bool = False) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=90)
    result = rotate(store, Order(name=name, seen=10**6, force=force), terms)
    assert result is not None
    return result


def _record(store: PostgresStore, name: str) -> Grant:
    record = store.load(name).record
    assert isinstance(record, Grant)
    return record


def test_what_a_promotion_may_have_lost_is_not_sent_again(pair: Pair) -> None:
    """If it failed, a standby without the last commits would let a refresh token be sent twice, and the login end (I1)."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        gate.opened.set()
        first = pair.host("a")
        for name in ("due", "resting"):
            _import(first, server, name)
            assert _rotate(first, name).outcome == "rotated"
        pair.primary.execute("UPDATE refresher.lease SET next_at = clock_timestamp() WHERE name = 'due'")
        pair.catch_up()
        pair.hold_back()
        gate.opened.clear()
        gate.reached.clear()
        results: list[Result] = []
        rotating = threading.Thread(target=lambda: results.append(_rotate(first, "due", force=True)))
        rotating.start()
        assert gate.reached.wait(60)
        pair.fail_over()
        # Its lease is lost. The first that comes notes that the grant may have been sent.
        second = pair.host("b")
        assert _record(second, "due").generation == 1
        assert pair.standby.execute("SELECT name FROM refresher.lease WHERE attempt IS NOT NULL") == []
        second.prepare()
        assert pair.standby.execute("SELECT name FROM refresher.lease WHERE doubt_at IS NOT NULL") == [("due",)]
        # The answer of the first comes back, although the database that gave it the lease is gone.
        gate.opened.set()
        rotating.join(90)
        assert results[0].outcome == "rotated"
        attempt.commit_spills(first.database, first.directories)
        assert list(spills.find(first.directories)) == []
        grant = _record(second, "due")
        assert (grant.generation, grant.doubt) == (2, None)
        assert _rotate(second, "due", force=True).outcome == "rotated"
        assert _rotate(second, "resting").outcome == "not_due"
        assert server.reused == 0


def test_a_lease_of_before_a_promotion_sends_nothing(pair: Pair) -> None:
    """If it failed, a holder would send what another may have sent on the primary that is gone (I1)."""
    with TokenServer(lambda _: 3600, grace=0) as server:
        first = pair.host("a")
        _import(first, server, "linear")
        lease = leases.claim(first.database, "linear")
        assert lease is not None
        pair.catch_up()
        pair.fail_over()
        with pytest.raises(leases.NotArmed):
            leases.arm(first.database, lease)
        pair.host("b").prepare()
        with pytest.raises(leases.NotArmed, match="had ended, or the database was promoted"):
            leases.arm(first.database, lease)
        assert server.presented == {}


def test_a_lease_that_a_promotion_has_lost_is_brought_back(pair: Pair) -> None:
    """If it failed, a forced rotation in mid-exchange would be sent again after a failover, and the login end (I1)."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        gate.opened.set()
        first, second = pair.host("a"), pair.host("b")
        _import(first, server, "linear")
        assert _rotate(first, "linear").outcome == "rotated"
        heartbeat = first.heartbeat()
        heartbeat.beat()
        pair.catch_up()
        pair.hold_back()
        gate.opened.clear()
        gate.reached.clear()
        rotating = threading.Thread(target=lambda: _rotate(first, "linear", force=True))
        rotating.start()
        assert gate.reached.wait(60)
        pair.fail_over()
        second.prepare()
        assert leases.claim(second.database, "linear") is None
        assert heartbeat.beat() is True
        pair.standby.execute("UPDATE refresher.epoch SET opens_at = clock_timestamp()")
        assert leases.claim(second.database, "linear") is None
        gate.opened.set()
        rotating.join(90)
        assert _record(second, "linear").generation == 2
        assert server.reused == 0


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_wait_for_the_standby_that_is_cancelled_while_arming_sends_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """If it failed, a lease that a failover loses would let its holder send beside another (I1)."""
    with TokenServer(lambda _: 3600, grace=0) as server:
        store = pair.host("a")
        _import(store, server, "linear")
        pair.synchronous()
        assert _rotate(store, "linear").outcome == "rotated"
        arm = leases.arm

        def held_back(*arguments: Any, **named: Any) -> None:
            monkeypatch.setattr(leases, "arm", arm)
            pair.hold_back()
            arm(*arguments, **named)

        monkeypatch.setattr(leases, "arm", held_back)
        results: list[Result] = []
        rotating = threading.Thread(target=lambda: results.append(_rotate(store, "linear", force=True)))
        rotating.start()
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: bool(pair.primary.execute(waiting)), "arming waits for the standby")
        pair.primary.execute(f"SELECT {how}(pid) FROM ({waiting}) waits")
        pair.synchronous(on=False)
        rotating.join(90)
        assert results[0].outcome == "storage_failed"
        assert "nothing was sent" in results[0].detail
        assert (len(server.presented["linear"]), _record(store, "linear").doubt) == (1, None)
        assert _rotate(store, "linear", force=True).outcome == "rotated"
        assert server.reused == 0


def test_a_promotion_is_noticed_before_its_first_checkpoint(pair: Pair) -> None:
    """If it failed, a standby would pass for its primary in the first seconds, when nobody knows what it lacks (I1)."""
    with TokenServer(lambda _: 3600, grace=0) as server:
        store = pair.host("a")
        _import(store, server, "linear")
        _import(store, server, "held")
        lease = leases.claim(store.database, "held")
        assert lease is not None
        pair.catch_up()
        ((checkpointer,),) = pair.standby.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        )
        os.kill(int(str(checkpointer)), signal.SIGSTOP)
        try:
            pair.fail_over()
            # What a refresher that asks the control file would see.
            assert pair.standby.execute("SELECT timeline_id FROM pg_control_checkpoint()") == [(1,)]
            assert store.claim_due(8, each=8, rooms={}) == {}
            assert leases.claim(store.database, "linear") is None
            with pytest.raises(leases.NotArmed):
                leases.arm(store.database, lease)
            assert _rotate_without_waiting(store, "linear").outcome == "lock_busy"
        finally:
            os.kill(int(str(checkpointer)), signal.SIGCONT)
        pair.host("b").prepare()
        pair.standby.execute("UPDATE refresher.epoch SET opens_at = clock_timestamp()")
        assert leases.claim(store.database, "linear") is not None
        assert server.presented == {}


def _rotate_without_waiting(store: PostgresStore, name: str) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
    result = rotate(store, Order(name=name, seen=0, force=True), terms)
    assert result is not None
    return result
