"""Walks of ``tests.unit.operations.test_state_machine`` that random draws reach too rarely."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from refresher.grants import policy
from tests.support.logins import Login
from tests.support.model_server import Ways
from tests.support.observer import SLOWEST
from tests.support.simulated_clock import DAY, HOUR, MINUTE, Happening
from tests.support.simulated_network import Trouble
from tests.unit.operations.test_state_machine import Machine

LOST = Trouble("lost on the way back")
STRICT = Ways(
    rotates=True, grace=0.0, life=HOUR, tells_life=True, ends_access=False, early="allowed", resource="ignored"
)
UNLIMITED = STRICT._replace(grace=None)
THIRTY_SECONDS = STRICT._replace(grace=30.0)
FIVE_SECONDS = STRICT._replace(grace=5.0)

Begin = Callable[..., Machine]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Import a login at a server with the given behavior and configuration."""
    with ExitStack() as ends:

        def start(ways: Ways, **configured: Any) -> Machine:
            usual: dict[str, Any] = {"issuer": None, "replay": ways.grace, "resource": None, "refuses_early": False}
            machine = Machine()
            ends.callback(machine.teardown)
            machine.is_imported(Login(ways, usual | configured, with_access=True), 0, is_old=False)
            return machine

        yield start


def test_an_answer_that_is_read_after_a_sleep_counts_from_its_request(begin: Begin) -> None:
    """If it failed, a laptop that sleeps during a refresh would need a new login although the old one is valid."""
    walk = begin(STRICT._replace(early="mistaken for dead"), refuses_early=True)
    walk.host.act(force=True, troubles=(Trouble(waiting=Happening("sleeps", 8 * HOUR)),))
    walk.only_a_login_that_its_server_ended_is_dead()


def test_a_rejection_just_before_the_expiry_does_not_end_the_login(begin: Begin) -> None:
    """If it failed, a server that counts the lifetime from its answer would sometimes end a login at the expiry."""
    walk = begin(STRICT._replace(early="mistaken for dead"), refuses_early=True)
    walk.the_daemon_rotates_on_schedule((Trouble(travels=SLOWEST),))
    walk.the_daemon_rotates_on_schedule(())
    walk.only_a_login_that_its_server_ended_is_dead()


def test_a_doubt_in_the_future_ends(begin: Begin) -> None:
    """If it failed, a clock that was reset by a dead battery would stop a grant in doubt for that time."""
    walk = begin(UNLIMITED, replay=0.0)
    walk.host.act(force=True, troubles=(LOST,))
    walk.the_machine_reboots(seconds=MINUTE, loses_mark=False, shift=-DAY)
    walk.the_login_recovers_in_limited_time(cron=False, used=False)


def test_a_grace_period_does_not_count_by_a_clock_that_stopped(begin: Begin) -> None:
    """If it failed, after a reboot without a battery a replay after the grace period would revoke a live access token."""
    walk = begin(THIRTY_SECONDS)
    walk.host.act(force=True, troubles=(LOST, Trouble("unreachable")))
    walk.the_machine_reboots(seconds=5 * MINUTE, loses_mark=False, shift=None)
    walk.host.act(force=True)


def test_a_grace_period_counts_from_the_first_lost_answer(begin: Begin) -> None:
    """If it failed, replays would continue after the grace period, and revoke a live access token."""
    walk = begin(THIRTY_SECONDS)
    walk.host.act(force=True, troubles=(LOST, LOST))
    walk.an_outage_lasts_for_several_attempts("error before", 5)
    walk.host.act(force=True)


@pytest.mark.parametrize(
    "troubles",
    [
        (LOST._replace(waiting=Happening("passes", 4.7)),),
        (LOST, Trouble(connecting=Happening("passes", 4.7))),
    ],
    ids=["waiting", "connecting"],
)
def test_a_replay_that_would_come_too_late_is_not_sent(begin: Begin, troubles: tuple[Trouble, ...]) -> None:
    """If it failed, a slow replay would arrive after the grace period, and revoke a live access token."""
    begin(FIVE_SECONDS).host.act(force=True, troubles=troubles)


def test_a_resource_that_was_refused_once_is_sent_again(begin: Begin) -> None:
    """If it failed, one wrong answer of a server that requires ``resource`` would make all later requests fail."""
    walk = begin(UNLIMITED._replace(resource="required"), resource="https://mcp.example/mcp", replay=0.0)
    walk.host.act(force=True, troubles=(Trouble("resource refused"),))
    walk.the_login_recovers_in_limited_time(cron=False, used=True)
    assert not walk.host.record.resource_refused


def test_a_resource_that_is_always_refused_is_not_sent_again(begin: Begin) -> None:
    """If it failed, every other rotation at such a server would be refused, and wait until the token expires."""
    walk = begin(UNLIMITED._replace(resource="refused"), resource="https://mcp.example/mcp", replay=0.0)
    walk.the_login_recovers_in_limited_time(cron=False, used=False)
    assert walk.host.record.resource_refused


def test_a_process_that_waited_for_the_lock_adopts_the_rotation_of_the_other(begin: Begin) -> None:
    """If it failed, two cron jobs at once would rotate twice, because the horizon of the second exceeds the lifetime."""
    walk = begin(STRICT)
    seen = walk.host.record.generation
    walk.host.act(force=True, troubles=(Trouble(waiting=Happening("passes", 4.0)),))
    walk.host.act(seen=seen, horizon=DAY)
    assert walk.host.record.generation == seen + 1


def test_a_doubt_does_not_end_when_the_clock_is_set_ahead(begin: Begin) -> None:
    """If it failed, after the clock is set ahead, a refresh token in doubt would be sent and revoke a live access token."""
    walk = begin(STRICT)
    walk.host.act(force=True, troubles=(LOST,))
    walk.time(Happening("is set", DAY))
    walk.host.act(force=True)


def test_an_early_rejection_of_a_server_whose_profile_says_so_does_not_end_the_login(begin: Begin) -> None:
    """If it failed, a forced rotation would end the login at a server that is known to refuse early."""
    walk = begin(STRICT._replace(early="mistaken for dead"), issuer="https://hh.ru", replay=msgspec.UNSET)
    walk.run_once_with_force(())
    walk.only_a_login_that_its_server_ended_is_dead()


def test_a_grant_that_needs_a_person_is_still_retried(begin: Begin) -> None:
    """If it failed, a login would need a person after its server refused for hours and then accepts it again."""
    walk = begin(STRICT)
    walk.an_outage_lasts_for_several_attempts("refused", 11)
    assert policy.needs_person(walk.host.record)
    walk.the_login_recovers_in_limited_time(cron=False, used=False)
    assert not policy.needs_person(walk.host.record)


def test_a_refused_resource_is_not_omitted_while_the_token_is_valid(begin: Begin) -> None:
    """If it failed, a server that uses up the refresh token before its checks would revoke a live access token."""
    walk = begin(STRICT._replace(resource="refused once spent"), resource="https://mcp.example/mcp")
    walk.host.act(force=True)


def test_a_setting_overrides_a_profile(begin: Begin) -> None:
    """If it failed, a server that no longer has a grace period would lose logins until the next release of refresher."""
    begin(STRICT, issuer="https://linear.app", replay=0.0).host.act(force=True, troubles=(LOST,))


def test_an_answer_that_was_saved_before_a_kill_is_not_in_doubt(begin: Begin) -> None:
    """If it failed, after a kill behind the rename a healthy grant would not rotate until its token expires."""
    walk = begin(UNLIMITED._replace(rotates=False), replay=0.0)
    walk.host.act(force=True, troubles=(Trouble("killed once it saved"),))
    walk.host.act()


@pytest.mark.parametrize("cron", [False, True], ids=["daemon", "cron"])
@pytest.mark.parametrize(
    "before", [Happening(), Happening("is set", -10 * MINUTE), Happening("sleeps", 13 * MINUTE)], ids=str
)
def test_a_refresh_token_that_ends_first_is_rotated_in_time(begin: Begin, cron: bool, before: Happening) -> None:
    """If it failed, a login whose refresh token ends before its access token would be lost, for example after a sleep."""
    walk = begin(STRICT._replace(life=8 * HOUR, refresh_life=15 * MINUTE))
    walk.time(before)
    walk.the_login_recovers_in_limited_time(cron=cron, used=False)
    assert walk.server.ended_by is None
    assert walk.host.record.generation > 1


def test_an_outage_before_the_end_of_a_refresh_token_does_not_cost_the_login(begin: Begin) -> None:
    """If it failed, the backoff of an outage would end after the refresh token, and a person would have to log in."""
    walk = begin(STRICT._replace(life=8 * HOUR, refresh_life=15 * MINUTE))
    while walk.server.refresh_ends(walk.observer.holding.refresh) - walk.clock.t > 20.0:
        walk.the_daemon_rotates_on_schedule((Trouble("unreachable"), Trouble("unreachable")))
    walk.the_daemon_rotates_on_schedule(())
    assert walk.server.ended_by is None
    assert walk.host.record.failure is None
