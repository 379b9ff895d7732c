"""What a daemon says of itself when its clocks, grants and loops are as they seldom are."""

from pathlib import Path

import pytest

from refresher.common import clocks
from refresher.common.signals import Listening
from refresher.config import resolve
from refresher.daemon.loop import Daemon
from refresher.daemon.readiness import Freshness
from refresher.daemon.supervision import Vitals
from tests.support.command import wait_until
from tests.support.samples import failure, grant


def fresh_grant(**changes: object) -> Freshness:
    """Return what is known after one look at a grant whose token was issued now."""
    now = clocks.now()
    known = Freshness()
    fields = {"issued_at": now.wall, "issued": now, "expires_at": now.wall + 3600, **changes}
    known.see(grant(**fields), published=True)
    known.looked_around()
    return known


def test_nothing_is_ready_before_each_grant_has_been_looked_at() -> None:
    """If it failed, a daemon with a thousand grants would call itself ready while it has seen none."""
    known = Freshness()
    assert not known.health(live=True).ready
    known.looked_around()
    assert known.health(live=True).ready, "no grants at all are no reason to wait"
    assert not known.health(live=False).ready


@pytest.mark.parametrize(
    ("changes", "ready", "fresh", "needy"),
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
def test_what_lives_is_fresh_and_what_a_person_must_mend_is_not_waited_for(
    changes: dict[str, object], ready: bool, fresh: int, needy: bool
) -> None:
    """If it failed, agents with a good token would be taken out of service, or those without one kept in it."""
    health = fresh_grant(**changes).health(live=True)
    assert (health.ready, health.fresh, bool(health.reauthorization_required)) == (ready, fresh, needy)


def test_a_record_that_becomes_unreadable_takes_nobodys_token_away() -> None:
    """If it failed, a damaged file would be told as a token that has ended."""
    known = fresh_grant()
    known.cannot_read("linear")
    known.cannot_read("other")
    health = known.health(live=True)
    assert (health.ready, health.grants, health.fresh) == (True, 2, 1)
    assert health.invalid_grant_file == ("linear", "other")
    known.forget("other")
    assert known.health(live=True).grants == 1


def test_of_many_names_the_first_are_told() -> None:
    """If it failed, ten thousand grants without a token would make a page that no probe reads to its end."""
    known = Freshness()
    for number in range(150):
        known.see(grant(name=f"g{number:03}", access_token=None), published=True)
    health = known.health(live=True)
    assert (health.grants, len(health.waiting), health.waiting[0]) == (150, 100, "g000")
    assert "g000, g001, g002, g003, g004 and 95 more" in health.in_words()


def test_without_a_beat_for_a_minute_the_loops_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a daemon that hangs would not be restarted, or one that is only busy would."""
    # A fake clock: nobody waits a minute for this.
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    vitals = Vitals()
    assert not vitals.health().live, "nothing has turned yet"
    vitals.beat()
    now += 59
    assert vitals.health().live
    now += 2
    assert not vitals.health().live
    vitals.finishing()
    assert vitals.health().live


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon without grants, whose parts are called one by one."""
    settings = resolve({"state_dir": str(tmp_path / "state"), "spill_dir": str(tmp_path / "spill")}, None)
    settings.directories.ensure()
    return Daemon(lambda: settings, Listening(), grace=25.0)


def test_the_loops_turn_only_where_the_timetable_rings(daemon: Daemon) -> None:
    """If it failed, a scheduler that has died would be called alive, and no token be rotated on time."""
    for _ in range(3):
        daemon._turn()
    assert not daemon._vitals.health().live, "the timetable does not run"
    daemon._timetable.start()
    daemon._beat_at = float("-inf")

    def turned() -> bool:
        daemon._turn()
        return daemon._vitals.health().live

    wait_until(turned, "it has rung")
    daemon._timetable.stop()


@pytest.mark.parametrize(
    ("microseconds", "pid", "each"),
    [("", "", 5.0), ("60000000", "", 5.0), ("3000000", "", 1.0), ("3000000", "1", 5.0), ("-5", "", 5.0)],
)
def test_it_beats_three_times_within_what_the_watchdog_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, each: float
) -> None:
    """If it failed, one late beat would have a healthy daemon killed; or a watchdog meant for another be obeyed."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Vitals().beat_each == each
