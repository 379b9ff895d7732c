"""Health and heartbeats of the daemon in rare states."""

from pathlib import Path

import pytest

from refresher.common import clocks
from refresher.common.signals import DaemonSignals
from refresher.config import resolve
from refresher.daemon.loop import Daemon
from refresher.daemon.metrics_page import MetricsPage
from refresher.daemon.readiness import Readiness
from refresher.daemon.supervision import Supervision
from refresher.grants.record import TokenRejected
from refresher.observers.hub import Observers
from refresher.observers.metrics import Counts
from refresher.operations.events import happened
from refresher.storage import last_run
from refresher.storage.file_store import FileStore
from shim._token import Problem, TokenFile
from tests.support.command import wait_until
from tests.support.fake_state import directories, put
from tests.support.samples import failure, grant


def inspected(**changes: object) -> Readiness:
    """Return the readiness after the inspection of a grant whose token was issued now."""
    now = clocks.now()
    readiness = Readiness()
    fields = {"issued_at": now.wall, "issued": now, "expires_at": now.wall + 3600, **changes}
    readiness.update(grant(**fields), published=True)
    readiness.mark_complete()
    return readiness


def test_a_daemon_is_not_ready_before_it_has_inspected_every_grant() -> None:
    """If it failed, a daemon would report that it is ready before it has read any grant."""
    readiness = Readiness()
    assert not readiness.health(live=True).ready
    readiness.mark_complete()
    assert readiness.health(live=True).ready, "a daemon without grants is ready"
    assert not readiness.health(live=False).ready


@pytest.mark.parametrize(
    ("changes", "ready", "fresh", "needs_person"),
    [
        ({}, True, 1, False),
        ({"failures": 3, "failure": failure()}, True, 1, False),
        ({"dead": True}, True, 1, True),
        ({"refusals": 10, "expires_at": 0.0}, True, 0, True),
        ({"expires_at": 0.0}, False, 0, False),
        ({"access_token": None}, False, 0, False),
        ({"expires_at": None}, True, 1, False),
    ],
)
def test_a_valid_token_is_fresh_and_a_grant_that_needs_a_person_does_not_prevent_ready(
    changes: dict[str, object], ready: bool, fresh: int, needs_person: bool
) -> None:
    """If it failed, agents with a valid token would be out of service, or agents without one in service."""
    health = inspected(**changes).health(live=True)
    assert (health.ready, health.fresh, bool(health.reauthorization_required)) == (ready, fresh, needs_person)


def test_the_published_token_of_an_unreadable_record_stays_fresh() -> None:
    """If it failed, a damaged file would be reported as an expired token."""
    readiness = inspected()
    readiness.mark_unreadable("linear")
    readiness.mark_unreadable("other")
    health = readiness.health(live=True)
    assert (health.ready, health.grants, health.fresh) == (True, 2, 1)
    assert health.invalid_grant_file == ("linear", "other")
    readiness.forget("other")
    assert readiness.health(live=True).grants == 1


def test_a_host_that_can_open_nothing_is_not_ready_and_says_once_what_has_changed() -> None:
    """If it failed, a host without its key would call itself ready, or a hook would run for each attempt."""
    now = clocks.now()
    readiness = Readiness()
    changes: list[tuple[str, str | None, str, str]] = []
    readiness.on_unreadable = lambda *change: changes.append(change)
    readiness.mark_unreadable("linear", "its key is not here")
    readiness.mark_unreadable("linear", "its key is not here")
    readiness.mark_complete()
    assert not readiness.health(live=True).ready
    there = grant(issued_at=now.wall, issued=now, expires_at=now.wall + 3600)
    readiness.update(there, published=True, unusable=True)
    assert readiness.health(live=True).ready, "agents have its token"
    readiness.update(there, published=True)
    assert changes == [
        ("linear", None, "invalid_grant_file", "its key is not here"),
        ("linear", "invalid_grant_file", "active", ""),
    ]


def test_a_list_of_names_is_limited_to_a_hundred() -> None:
    """If it failed, ten thousand grants without a token would make a response that is too large for a probe."""
    readiness = Readiness()
    for number in range(150):
        readiness.update(grant(name=f"g{number:03}", access_token=None), published=True)
    health = readiness.health(live=True)
    assert (health.grants, len(health.waiting), health.waiting[0]) == (150, 100, "g000")
    assert "g000, g001, g002, g003, g004 and 95 more" in health.summary()


def test_a_daemon_without_a_heartbeat_for_a_minute_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a daemon that hangs would not be restarted, or a busy one would be."""
    # A fake clock, because the test must not take a minute.
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    supervision = Supervision()
    assert not supervision.health().live, "there was no heartbeat yet"
    supervision.heartbeat()
    now += 59
    assert supervision.health().live
    now += 2
    assert not supervision.health().live
    supervision.extend_stop()
    assert supervision.health().live


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon without grants, whose methods the test calls one by one."""
    settings = resolve({"state_dir": str(tmp_path / "state"), "spill_dir": str(tmp_path / "spill")}, None)
    settings.directories.prepare()
    return Daemon(lambda: settings, DaemonSignals(), Observers("run", settings), grace=25.0)


def test_a_daemon_is_live_only_while_its_schedule_runs(daemon: Daemon) -> None:
    """If it failed, nobody would notice that the schedule has stopped and tokens are not rotated on time."""
    for _ in range(3):
        daemon._step()
    assert not daemon._supervision.health().live, "the schedule does not run"
    daemon._schedule.start()
    daemon._heartbeat_at = float("-inf")

    def is_live() -> bool:
        daemon._step()
        return daemon._supervision.health().live

    wait_until(is_live, "there was a heartbeat")
    daemon._schedule.stop()


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [("", "", 5.0), ("60000000", "", 5.0), ("3000000", "", 1.0), ("3000000", "1", 5.0), ("-5", "", 5.0)],
)
def test_there_are_three_heartbeats_within_the_time_of_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, interval: float
) -> None:
    """If it failed, systemd would kill a healthy daemon after one late heartbeat."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Supervision().heartbeat_interval == interval


def test_the_most_urgent_grants_come_first_and_all_are_counted_by_state() -> None:
    """If it failed, the metrics of many grants would leave out the one that needs a person, or count it as active."""
    now = clocks.now()
    readiness = Readiness()

    def note(name: str, left: float, *, published: bool = True, **changes: object) -> None:
        fields = {"name": name, "issued_at": now.wall, "issued": now, "expires_at": now.wall + left, **changes}
        readiness.update(grant(**fields), published=published)

    note("later", 7200)
    note("soon", 60)
    note("ending", 7200, login_ends_at=now.wall + 86400)
    note("failing", 7200, failures=1, failure=failure())
    note("refused", 7200, token_rejected=TokenRejected(at=now.wall))
    note("dead", 7200, dead=True)
    readiness.mark_unreadable("damaged")
    names, by_state = readiness.most_urgent(6)
    assert (set(names[:2]), set(names[2:4]), names[4:]) == (
        {"dead", "damaged"},
        {"failing", "refused"},
        ["ending", "soon"],
    )
    assert by_state == {"active": 3, "failing": 2, "reauthorization_required": 1, "invalid_grant_file": 1}
    assert set(readiness.most_urgent(7)[0]) == {*names, "later"}
    readiness.forget("ending")
    note("ending", 7200)
    assert readiness.most_urgent(1)[1]["active"] == 3
    assert readiness.knows("anything"), "its counters end before all grants have been inspected"
    readiness.mark_complete()
    assert not readiness.knows("anything")


def test_a_failing_grant_without_a_valid_token_waits() -> None:
    """If it failed, a daemon would report that it is ready while agents of a failing grant have no token."""
    health = inspected(failures=3, failure=failure(), expires_at=0.0).health(live=True)
    assert (health.ready, health.waiting) == (False, ("linear",))


def test_the_page_of_metrics_shows_the_records_and_its_counts(tmp_path: Path) -> None:
    """If it failed, /metrics of the daemon would show grants that were removed, or not those that exist."""
    made, readiness, counts = directories(tmp_path), Readiness(), Counts()
    for name in ("linear", "removed"):
        put(made.record(name), record := grant(name=name, expires_at=2e9))
        readiness.update(record, published=True)
    readiness.mark_complete()
    counts.observe([happened(name, "rotated", outcome="rotated") for name in ("linear", "removed")])
    config = tmp_path / "config.toml"
    config.write_text('[hooks]\non_rotated = ["true"]\n')
    observers = Observers("run", resolve({"state_dir": str(made.state)}, str(config)))
    observers.add(counts)
    page = MetricsPage(readiness, counts, observers, lambda: FileStore(made))
    text = page()[0].decode()
    assert 'refresher_rotations_total{name="removed",outcome="rotated"} 1.0' in text
    assert "\nrefresher_last_run" not in text, "there was no run"
    readiness.forget("removed")
    last_run.note(made, 60.0)
    wait_until(lambda: b"removed" not in page()[0], "the page is made again")
    text = page()[0].decode()
    for line in (
        'refresher_grant_expiration_timestamp_seconds{name="linear"} 2e+09',
        'refresher_rotations_total{name="linear",outcome="rotated"} 1.0',
        'refresher_events_dropped_total{observer="metrics"} 0.0',
        'refresher_hook_failures_total{hook="on_rotated"} 0.0',
        'refresher_grants{state="active"} 1.0',
    ):
        assert line in text, line
    assert "\nrefresher_last_run_timestamp_seconds " in text
    assert page()[1].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("left", "state", "code", "ready", "fresh", "rejected"),
    [
        (3600.0, "active", None, True, 1, False),
        (-1.0, "active", None, False, 0, False),
        (-1.0, "reauthorization_required", "invalid_grant", True, 0, False),
        (3600.0, "failing", "token_rejected", True, 1, True),
    ],
)
def test_a_host_that_mirrors_a_database_is_ready_while_its_tokens_live(
    left: float, state: str, code: str | None, ready: bool, fresh: int, rejected: bool
) -> None:
    """If it failed, a host that is cut off from its database would be in service with tokens that are dead."""
    now = clocks.now().wall
    token = TokenFile(
        name="linear",
        grant_id="id",
        generation=3,
        state=state,
        access_token="an-access-token",
        token_type="Bearer",
        issued_at=now - 10,
        expires_at=now + left,
        scope=None,
        origins=("https://mcp.example",),
        error=None if code is None else Problem(code, "words", now, None),
    )
    readiness = Readiness()
    readiness.update_copy(token)
    readiness.mark_complete()
    health = readiness.health(live=True)
    assert (health.ready, health.fresh, bool(health.token_rejected)) == (ready, fresh, rejected)
