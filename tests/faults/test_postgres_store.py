"""The store in PostgreSQL under stopped, killed and cut-off processes, and a database that does not answer.

Where a test would wait for the end of a lease, it sets that end into the past: the clock of the database decides.
"""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres import database, leases, spills
from refresher.storage.postgres.attempt import PostgresAttempt
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.command import Command, wait_until
from tests.support.cut_proxy import CutProxy
from tests.support.daemon import running
from tests.support.fake_state import directories
from tests.support.postgres import Cluster
from tests.support.site import Site
from tests.support.token_server import Gate, TokenServer

_ARMING = b"RETURNING 1"
_SETTLING = b"last_attempt = "
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND datname = current_database()"
)


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[CutProxy]:
    with CutProxy(postgres.port) as made:
        yield made


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[TokenServer]:
    """A server that ends the login at the first reuse, and answers when ``gate`` is opened."""
    with TokenServer(lambda _: 3600, gate, grace=0) as made:
        yield made
        gate.opened.set()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Kills what a failed test leaves behind."""
    with ExitStack() as stack:
        yield stack


def _rotated_once(host: Command, server: TokenServer, gate: Gate) -> None:
    """Bring in a grant and rotate it, so that agents have an access token which a reuse would end."""
    host.import_grant("linear", server.grant("linear"))
    gate.opened.set()
    assert host("run-once").code == 0
    gate.opened.clear()
    gate.reached.clear()


def _start(host: Command, processes: ExitStack) -> subprocess.Popen[str]:
    process = host.start("run-once", "--force", "--json", "linear")

    def end() -> None:
        if process.poll() is None:
            process.kill()
            process.communicate()

    processes.callback(end)
    return process


def _sent(server: TokenServer) -> int:
    return len(server.presented["linear"])


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until each of its threads stands."""
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: _states(process.pid) == {"T"}, "the process stands")


def _states(pid: int) -> set[str]:
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()}


# A holder that is stopped after its request was sent.


@pytest.mark.parametrize("other", ["open", "armed", "refused"])
def test_an_answer_counts_whatever_another_does_with_the_lease(
    site: Site, server: TokenServer, gate: Gate, processes: ExitStack, other: str
) -> None:
    """If it failed, a machine that sleeps during an exchange would lose a login, because another has taken over (I6)."""
    first = site.host("a")
    _rotated_once(first, server, gate)
    process = _start(first, processes)
    assert gate.reached.wait(90)
    _stop(process)
    gate.opened.set()
    site.end_leases()
    with site.store.held("linear", stopping=lambda: False, wait=0.0) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        assert stored.record.doubt is not None
        attempt = held.begin(stored, stored.record, lambda: None)
        if other != "open":
            attempt.before_first_byte()
        if other == "refused":
            _refuse(attempt, stored.record)
        process.send_signal(signal.SIGCONT)
        assert first.finish(process).outcome == "rotated"
        if other == "open":
            with pytest.raises(leases.NotArmed):
                attempt.before_first_byte()
        if other == "armed":
            there = _refuse(attempt, stored.record)
            assert (there.generation, there.dead) == (2, False)
    grant = site.grant("linear")
    assert (grant.generation, grant.doubt, grant.dead) == (2, None, False)
    assert first("run-once", "--force", "linear").code == 0
    assert (_sent(server), server.reused, site.orphans()) == (3, 0, [])
    assert site.execute("SELECT name FROM refresher.lease WHERE attempt IS NOT NULL") == []


def _refuse(attempt: PostgresAttempt, grant: Grant) -> Grant:
    """Settle an attempt as one whose refresh token the server has refused."""
    return attempt.persist(msgspec.structs.replace(grant, dead=True), until_saved=False)


# A holder that is stopped before its request is sent.


def test_a_process_that_is_stopped_before_arming_sends_nothing(
    site: Site, server: TokenServer, gate: Gate, proxy: CutProxy, processes: ExitStack
) -> None:
    """If it failed, a machine that wakes up would send a refresh token that another has spent meanwhile (I1)."""
    first, second = site.host("a", proxy.port), site.host("b")
    _rotated_once(first, server, gate)
    gate.opened.set()
    proxy.only, proxy.hold = _ARMING, "statement"
    process = _start(first, processes)
    assert proxy.held.wait(90)
    _stop(process)
    site.end_leases()
    assert second("run-once", "--force", "linear", "--json").outcome == "rotated"
    assert site.grant("linear").doubt is None
    proxy.hold = "never"
    proxy.go.set()
    process.send_signal(signal.SIGCONT)
    assert first.finish(process).outcome == "adopted"
    assert (_sent(server), server.reused, site.generation("linear")) == (2, 0, 2)


def test_a_process_that_is_stopped_between_arming_and_sending_sends_nothing(
    site: Site, server: TokenServer, gate: Gate, proxy: CutProxy, processes: ExitStack
) -> None:
    """If it failed, a machine that wakes up would send after the end of its lease, beside another (I1)."""
    first, second = site.host("a", proxy.port), site.host("b")
    _rotated_once(first, server, gate)
    gate.opened.set()
    proxy.only, proxy.hold = _ARMING, "confirmation"
    process = _start(first, processes)
    assert proxy.held.wait(90)
    _stop(process)
    began = clocks.now().boottime
    proxy.hold = "never"
    proxy.go.set()
    assert site.execute("SELECT state FROM refresher.lease") == [("armed",)]
    site.end_leases()
    assert second("run-once", "--force", "linear", "--json").outcome == "in_doubt"
    wait_until(lambda: clocks.now().boottime > began + 2.5, "the pause is a long one")
    process.send_signal(signal.SIGCONT)
    assert first.finish(process).outcome != "rotated"
    assert _sent(server) == 1
    # The doubt was a false alarm, and ends as any other.
    assert site.grant("linear").doubt is not None


# A database that goes away in mid-exchange.


def test_an_answer_is_stored_although_each_session_was_ended(
    site: Site, server: TokenServer, gate: Gate, processes: ExitStack
) -> None:
    """If it failed, a restart of the database would cost the login of each exchange under way (I6)."""
    first, second = site.host("a"), site.host("b")
    _rotated_once(first, server, gate)
    process = _start(first, processes)
    assert gate.reached.wait(90)
    site.execute(_END_SESSIONS)
    # The session was a hint; without it the lease holds for its whole time.
    assert leases.claim(site.store.database, "linear") is None
    gate.opened.set()
    assert first.finish(process).outcome == "rotated"
    assert (site.generation("linear"), site.orphans()) == (2, [])
    assert second("run-once", "--force", "linear", "--json").outcome == "rotated"
    assert server.reused == 0


@pytest.mark.parametrize("replays", [False, True])
def test_a_process_that_is_killed_after_its_spill_loses_nothing(
    site: Site, server: TokenServer, gate: Gate, proxy: CutProxy, processes: ExitStack, replays: bool
) -> None:
    """If it failed, a database that is away and a crash after it would cost a login (I6)."""
    first, second = site.host("a", proxy.port), site.host("b")
    _rotated_once(first, server, gate)
    with running(first) as process:
        (first.state / "demands" / "linear.1").touch()
        assert gate.reached.wait(90)
        proxy.cut = "always"
        proxy.break_off()
        gate.opened.set()
        wait_until(lambda: bool(_spills(first)), "the answer is saved on its host")
        process.kill()
        process.communicate()
    site.end_leases()
    if replays:
        # What another does meanwhile with a server that gives the same answer again.
        _replay(site, first)
    else:
        assert second("run-once", "linear", "--json").outcome == "in_doubt"
    proxy.cut = "never"
    assert first("run-once", "linear", "--json").outcome in ("not_due", "adopted")
    grant = site.grant("linear")
    assert (grant.generation, grant.doubt) == (2, None)
    assert (_spills(first), site.orphans()) == ([], [])
    assert second("run-once", "--force", "linear", "--json").outcome == "rotated"
    assert (server.reused, _sent(server)) == (0, 3)


def _spills(host: Command) -> list[Path]:
    return sorted((host.state / "grants").glob("*.spill"))


def _replay(site: Site, host: Command) -> None:
    """Store what is in the spill of ``host`` as the answer that another got for the same refresh token."""
    _, answer = spills.read(host.directories, _spills(host)[0])
    with site.store.held("linear", stopping=lambda: False, wait=0.0) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        attempt = held.begin(stored, stored.record, lambda: None)
        attempt.before_first_byte()
        attempt.persist(answer, until_saved=True)


@pytest.mark.parametrize("end", ["the confirmation comes late", "the process is killed"])
def test_a_confirmation_that_does_not_come_loses_nothing(
    site: Site, server: TokenServer, gate: Gate, proxy: CutProxy, processes: ExitStack, end: str
) -> None:
    """If it failed, a COMMIT that took effect without its holder knowing would be stored twice, or as an orphan."""
    first, second = site.host("a", proxy.port), site.host("b")
    _rotated_once(first, server, gate)
    gate.opened.set()
    proxy.only, proxy.hold = _SETTLING, "confirmation"
    process = _start(first, processes)
    assert proxy.held.wait(90)
    wait_until(lambda: bool(_spills(first)), "the answer is saved on its host")
    assert site.generation("linear") == 2
    # Another goes on with what is stored, while the first does not know it.
    assert second("run-once", "--force", "linear", "--json").outcome == "rotated"
    if end == "the process is killed":
        process.kill()
        process.communicate()
    proxy.hold = "never"
    proxy.go.set()
    if end != "the process is killed":
        assert first.finish(process).outcome == "rotated"
    assert first("run-once", "linear", "--json").outcome == "not_due"
    assert (site.generation("linear"), _spills(first), site.orphans()) == (3, [], [])
    assert (server.reused, _sent(server)) == (0, 3)


# What another process, or a bad server, does at the wrong moment.


def _bring(site: Site, server: TokenServer, name: str) -> None:
    parsed = import_request.parse(name, json.dumps(server.grant(name)).encode(), clocks.now())
    store_grant(site.store, parsed, replace=False, if_absent=False, stopping=lambda: False)


def _rotate(site: Site, name: str) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
    result = rotate(site.store, Order(name=name, seen=10**6, force=True), terms)
    assert result is not None
    return result


def test_the_note_of_an_earlier_holder_leaves_a_doubt(site: Site, server: TokenServer, gate: Gate) -> None:
    """If it failed, a doubt would be forgotten, and a spent refresh token be sent again (I1)."""
    gate.opened.set()
    _bring(site, server, "linear")
    assert _rotate(site, "linear").outcome == "rotated"
    with site.store.held("linear", stopping=lambda: False, wait=0.0) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        held.begin(stored, stored.record, lambda: None).before_first_byte()
    site.end_leases()
    assert leases.claim(site.store.database, "linear") is not None
    held.note(stored.record, end_warned=5.0)
    assert site.grant("linear").end_warned == 5.0
    # The one that has seen the doubt ends before it notes it.
    site.end_leases()
    assert _rotate(site, "linear").outcome == "in_doubt"
    assert _sent(server) == 1


def test_a_server_that_issues_one_refresh_token_to_two_grants_loses_no_answer(
    site: Site, server: TokenServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, an answer would be thrown away, and a spent refresh token be sent again (I6)."""
    gate.opened.set()
    answer = server._answer

    def same(client: str, token: str) -> dict[str, Any]:
        issued = answer(client, token)
        server._logins["one-for-all"] = client
        return issued | {"refresh_token": "one-for-all"}

    monkeypatch.setattr(server, "_answer", same)
    for name in ("first", "second"):
        _bring(site, server, name)
    assert _rotate(site, "first").outcome == "rotated"
    second = _rotate(site, "second")
    assert second.outcome == "reauthorization_required"
    assert "log in again under this name" in second.detail
    assert [name for name, _ in site.orphans()] == ["second"]
    assert site.execute("SELECT name FROM refresher.lease WHERE attempt IS NOT NULL") == []
    assert site.grant("second").dead
    assert len(server.presented["second"]) == 1


def test_an_answer_is_stored_over_a_record_that_a_promotion_has_set_back(
    site: Site, server: TokenServer, gate: Gate
) -> None:
    """If it failed, a failover would set aside the only good token of a grant, and a spent one be sent again (I1)."""
    gate.opened.set()
    _bring(site, server, "linear")
    (record,) = site.execute("SELECT bytes, published FROM refresher.record")
    ((fingerprint,),) = site.execute("SELECT fingerprint FROM refresher.lease")
    assert _rotate(site, "linear").outcome == "rotated"
    gate.opened.clear()
    gate.reached.clear()
    results: list[Result] = []
    rotating = threading.Thread(target=lambda: results.append(_rotate(site, "linear")))
    rotating.start()
    assert gate.reached.wait(60)
    # As on a standby that lacks the last rotation, and the lease of this one.
    site.execute("UPDATE refresher.record SET bytes = %s, published = %s, generation = 0", *record)
    site.execute("DELETE FROM refresher.spent")
    site.execute(
        "UPDATE refresher.lease SET generation = 0, fingerprint = %s, last_attempt = NULL, attempt = NULL, "
        "state = NULL, armed_at = NULL, until = NULL",
        fingerprint,
    )
    gate.opened.set()
    rotating.join(90)
    assert [result.outcome for result in results] == ["rotated"]
    assert (site.generation("linear"), site.orphans()) == (2, [])
    assert site.execute("SELECT 1 FROM refresher.spent WHERE fingerprint = %s", fingerprint) == [(1,)]
    assert _rotate(site, "linear").outcome == "rotated"
    assert server.reused == 0


def test_the_session_of_a_holder_is_made_again(site: Site) -> None:
    """If it failed, after a restart of the database a holder that is alive would pass for dead."""
    before = site.store.database.holder()
    site.execute(_END_SESSIONS)
    now = site.store.database.holder()
    assert now is not None
    assert now != before
    assert site.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = %s", now[0]) == [now]


def test_a_spill_that_another_process_has_stored_is_no_fault(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a rotation would fail now and then, because another process of its host stores a spill just then."""
    gone = site.store.directories.grants / f"linear.{'0' * 32}.spill"
    monkeypatch.setattr(spills, "find", lambda *_: [gone])
    assert site.store.commit_spills() == []


def test_a_database_that_stands_still_does_not_hold_up_a_rotation(
    site: Site, server: TokenServer, gate: Gate, postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a refresher could not end while its database, or a pooler before it, keeps connections and answers
    nothing.
    """
    monkeypatch.setattr(database, "_LONGEST", 1.0)
    host = site.host("a")
    _rotated_once(host, server, gate)
    store = PostgresStore(f"{site.url}?connect_timeout=2", directories(tmp_path / "b"))
    results: list[Result | None] = []
    terms = Terms(ca_file=None, stopping=lambda: False)
    order = Order(name="linear", seen=1, force=True)
    rotating = threading.Thread(target=lambda: results.append(rotate(store, order, terms)), daemon=True)
    rotating.start()
    assert gate.reached.wait(90)
    with postgres.frozen():
        gate.opened.set()
        rotating.join(90)
    assert [result and result.outcome for result in results] == ["rotated"]
    assert store.commit_spills() == []
    store.close()
    assert (site.generation("linear"), list(spills.find(store.directories)), site.orphans()) == (2, [], [])
    assert host("run-once", "--force", "linear", "--json").outcome == "rotated"
    assert server.reused == 0
