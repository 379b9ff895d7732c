"""Walks of the state machine that chance takes too seldom, each by name (``tests.unit.operations.test_state_machine``)."""

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
FOR_EVER = STRICT._replace(grace=None)
HALF_A_MINUTE = STRICT._replace(grace=30.0)
FIVE_SECONDS = STRICT._replace(grace=5.0)

Begin = Callable[..., Machine]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Import a login at a server with such ways, configured so."""
    with ExitStack() as ends:

        def start(ways: Ways, **configured: Any) -> Machine:
            usual: dict[str, Any] = {"issuer": None, "replay": ways.grace, "resource": None, "refuses_early": False}
            machine = Machine()
            ends.callback(machine.teardown)
            machine.is_imported(Login(ways, usual | configured, with_access=True), 0, is_old=False)
            return machine

        yield start


def test_an_answer_that_is_read_after_a_sleep_is_judged_by_when_it_was_asked(begin: Begin) -> None:
    """If it failed, a laptop closed at the wrong second would call a person to a login that lives."""
    walk = begin(STRICT._replace(early="mistaken for dead"), refuses_early=True)
    walk.host.act(force=True, troubles=(Trouble(waiting=Happening("sleeps", 8 * HOUR)),))
    walk.only_the_dead_are_dead()


def test_a_verdict_that_comes_a_moment_before_the_end_is_mistaken(begin: Begin) -> None:
    """If it failed, a server that counts from its own answer would cost a person a login at some expiry."""
    walk = begin(STRICT._replace(early="mistaken for dead"), refuses_early=True)
    walk.the_daemon_wakes_when_it_planned_to((Trouble(travels=SLOWEST),))
    walk.the_daemon_wakes_when_it_planned_to(())
    walk.only_the_dead_are_dead()


def test_a_doubt_that_seems_to_lie_in_the_future_ends(begin: Begin) -> None:
    """If it failed, a dead battery would stop a grant in doubt for as long as the clock was set back."""
    walk = begin(FOR_EVER, replay=0.0)
    walk.host.act(force=True, troubles=(LOST,))
    walk.the_machine_reboots(seconds=MINUTE, loses_mark=False, shift=-DAY)
    walk.all_is_well_for_a_while(cron=False, used=False)


def test_no_grace_is_counted_by_a_clock_that_stood_still(begin: Begin) -> None:
    """If it failed, a reboot without a battery would revoke a live access token with a replay long after its grace."""
    walk = begin(HALF_A_MINUTE)
    walk.host.act(force=True, troubles=(LOST, Trouble("unreachable")))
    walk.the_machine_reboots(seconds=5 * MINUTE, loses_mark=False, shift=None)
    walk.host.act(force=True)


def test_a_grace_counts_from_the_first_loss(begin: Begin) -> None:
    """If it failed, replay after replay would go on when the grace is long over, and revoke a live access token."""
    walk = begin(HALF_A_MINUTE)
    walk.host.act(force=True, troubles=(LOST, LOST))
    walk.nothing_works_for_a_while("error before", 5)
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
    """If it failed, a replay that takes its time on the way would arrive after the grace and revoke a live token."""
    begin(FIVE_SECONDS).host.act(force=True, troubles=troubles)


def test_a_resource_that_was_refused_for_a_while_is_sent_again(begin: Begin) -> None:
    """If it failed, one bad answer would make a server that wants ``resource`` refuse for ever."""
    walk = begin(FOR_EVER._replace(resource="required"), resource="https://mcp.example/mcp", replay=0.0)
    walk.host.act(force=True, troubles=(Trouble("resource refused"),))
    walk.all_is_well_for_a_while(cron=False, used=True)
    assert not walk.host.record.resource_refused


def test_a_resource_that_was_refused_stays_away(begin: Begin) -> None:
    """If it failed, every other rotation at such a server would be refused, and wait for the end of the token."""
    walk = begin(FOR_EVER._replace(resource="refused"), resource="https://mcp.example/mcp", replay=0.0)
    walk.all_is_well_for_a_while(cron=False, used=False)
    assert walk.host.record.resource_refused


def test_whoever_waited_for_the_lock_takes_what_is_there(begin: Begin) -> None:
    """If it failed, two crons that meet would rotate twice: the horizon of the second is longer than a token lives."""
    walk = begin(STRICT)
    seen = walk.host.record.generation
    walk.host.act(force=True, troubles=(Trouble(waiting=Happening("passes", 4.0)),))
    walk.host.act(seen=seen, horizon=DAY)
    assert walk.host.record.generation == seen + 1


def test_a_doubt_does_not_end_by_a_clock_that_was_set(begin: Begin) -> None:
    """If it failed, setting the clock ahead would revoke a live access token with the refresh token in doubt."""
    walk = begin(STRICT)
    walk.host.act(force=True, troubles=(LOST,))
    walk.time(Happening("is set", DAY))
    walk.host.act(force=True)


def test_a_profile_says_that_a_verdict_is_mistaken(begin: Begin) -> None:
    """If it failed, the first impatient person would lose a login at a server that is known to refuse early."""
    walk = begin(STRICT._replace(early="mistaken for dead"), issuer="https://hh.ru", replay=msgspec.UNSET)
    walk.somebody_forces_it(())
    walk.only_the_dead_are_dead()


def test_a_person_is_told_and_the_trying_goes_on(begin: Begin) -> None:
    """If it failed, a server that refuses for hours and then thinks better of it would need a person all the same."""
    walk = begin(STRICT)
    walk.nothing_works_for_a_while("refused", 11)
    assert policy.needs_person(walk.host.record)
    walk.all_is_well_for_a_while(cron=False, used=False)
    assert not policy.needs_person(walk.host.record)


def test_a_refused_resource_is_not_left_out_while_a_token_lives(begin: Begin) -> None:
    """If it failed, a server that spends the refresh token before it looks would revoke a live access token."""
    walk = begin(STRICT._replace(resource="refused once spent"), resource="https://mcp.example/mcp")
    walk.host.act(force=True)


def test_what_a_person_says_of_a_server_overrules_its_profile(begin: Begin) -> None:
    """If it failed, a server that has given up its grace could not be told to refresher before the next release."""
    begin(STRICT, issuer="https://linear.app", replay=0.0).host.act(force=True, troubles=(LOST,))


def test_what_was_saved_before_a_kill_is_in_no_doubt(begin: Begin) -> None:
    """If it failed, a kill after the rename would keep a healthy grant from its next rotation until its token ends."""
    walk = begin(FOR_EVER._replace(rotates=False), replay=0.0)
    walk.host.act(force=True, troubles=(Trouble("killed once it saved"),))
    walk.host.act()
