"""One login, many troubles: a state machine over grant, policy, exchange and a model of an authorization server.

Each walk draws a server and an honest configuration (``tests.support.logins``), and then what happens to them, step by
step. The product runs on a machine of which only clocks and network are played (``tests.support.simulated_host``); what it
must never do is said by an onlooker who knows the truth (``tests.support.observer``), and below.
"""

import logging
from contextlib import ExitStack
from typing import Final, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from refresher.grants import policy, server_behavior
from refresher.grants.policy import Rotate, Wait
from tests.support.logins import Login, logins
from tests.support.observer import SLOWEST
from tests.support.simulated_clock import DAY, EPSILON, HOUR, MINUTE, Happening, SimulatedClock
from tests.support.simulated_host import SimulatedHost
from tests.support.simulated_network import Fault, Trouble

_spans = st.sampled_from([0.4, 3.0, 7.0, 15.0, 29.5, 61.0, 400.0, 950.0, 2000.0, HOUR, 8 * HOUR, DAY]) | st.floats(
    0.1, DAY
)
_shifts = st.sampled_from([-30.0, 30.0, -61.0, 61.0, -HOUR, HOUR, -DAY, DAY, -30 * DAY])
_happenings = st.one_of(
    st.builds(Happening, st.just("passes"), _spans),
    st.builds(Happening, st.just("sleeps"), _spans),
    st.builds(Happening, st.just("is set"), _shifts),
)
_pauses = (
    st.sampled_from([Happening("passes", seconds) for seconds in (0.0, 0.0, 0.0, 1.0, 4.0, 4.7, 9.5, 30.0)])
    | _happenings
)
# What leaves a doubt stands here twice: without it, little can go wrong.
_faults: st.SearchStrategy[Fault] = st.sampled_from((*get_args(Fault), "lost on the way there", "lost on the way back"))
_troubles = st.lists(st.builds(Trouble, _faults, _pauses, _pauses, st.sampled_from([0.1, SLOWEST])), max_size=3).map(
    tuple
)
_losses: st.SearchStrategy[Fault] = st.sampled_from(
    ("lost on the way back", "error after", "garbled", "killed before its answer", "killed before it saved")
)
_horizons = st.sampled_from([MINUTE, 5 * MINUTE, HOUR])
_OUTAGES: Final[tuple[Fault, ...]] = (
    "error before",
    "error before",
    "unreachable",
    "busy",
    "refused",
    "client rejected",
)


class Machine(RuleBasedStateMachine):
    """A login, a server, and all who want something of them."""

    def __init__(self) -> None:
        super().__init__()
        self._playing = ExitStack()

    @initialize(login=logins(), knows_boot=st.integers(0, 5), is_old=st.booleans())
    def is_imported(self, login: Login, knows_boot: int, is_old: bool) -> None:
        """Log in by other means, and import what came of it; an old release has not noted when by every clock."""
        self.teardown()
        self.server, first = login.begin()
        self.clock = SimulatedClock(knows_boot=knows_boot < 5)
        first = msgspec.structs.replace(first, issued=None if is_old else self.clock.read())
        self.host = SimulatedHost(self.server, self.clock, first)
        self._playing.callback(self.host.close)
        self.onlooker = self.host.observer
        self.false_alarm = False
        self.knows_life = self.server.ways.tells_life or self.server.ways.life == (
            server_behavior.access_token_lifetime(first) or policy.DEFAULT_MAX_AGE
        )
        self.demanded: set[int] = set()
        """Generations whose token some agent has demanded, as nobody does twice."""

    def teardown(self) -> None:
        """Leave nothing played behind."""
        self._playing.close()

    # Time.

    @rule(happening=_happenings)
    def time(self, happening: Happening) -> None:
        """It passes, is slept through, or the wall clock is set: by hand, by NTP, by a dead battery."""
        self.clock.happen(happening)
        self.onlooker.disturbed |= happening.what == "is set"

    @rule(seconds=_spans, loses_mark=st.booleans(), shift=st.sampled_from([0.0, None]) | _shifts)
    def the_machine_reboots(self, seconds: float, loses_mark: bool, shift: float | None) -> None:
        """An unsynced mark may be lost with the power; a machine without a battery goes on from when it stopped."""
        self.host.reboot(seconds, loses_mark=loses_mark)
        self.clock.happen(Happening("is set", -seconds if shift is None else shift))

    # Those who rotate.

    @rule(troubles=_troubles)
    def the_daemon_wakes_when_it_planned_to(self, troubles: tuple[Trouble, ...]) -> None:
        """The timetable rings."""
        self._sleep_until_due()
        self.host.act(troubles=troubles)

    def _sleep_until_due(self) -> None:
        decision = self.host.decide()
        if isinstance(decision, Wait) and decision.until is not None:
            self.clock.happen(Happening("passes", max(decision.until - self.clock.read().wall, 0.0) + EPSILON / 10))

    @rule(fault=st.sampled_from(_OUTAGES), times=st.sampled_from([2, 4, 11]))
    def nothing_works_for_a_while(self, fault: Fault, times: int) -> None:
        """An outage; the daemon keeps trying."""
        for _ in range(times):
            self._sleep_until_due()
            self.host.act(troubles=(Trouble(fault), Trouble(fault)))

    @rule(troubles=_troubles, horizon=_horizons | st.just(0.0))
    def somebody_runs_once(self, troubles: tuple[Trouble, ...], horizon: float) -> None:
        """Cron, or a person."""
        self.host.act(troubles=troubles, horizon=horizon)

    @rule(troubles=_troubles)
    def somebody_forces_it(self, troubles: tuple[Trouble, ...]) -> None:
        """An impatient person."""
        self.host.act(troubles=troubles, force=True)

    @rule(fault=_losses, pause=_pauses, then=_happenings, reboots=st.booleans(), shift=st.sampled_from([None, -DAY]))
    def an_answer_is_lost(
        self, fault: Fault, pause: Happening, then: Happening, reboots: bool, shift: float | None
    ) -> None:
        """What most logins are lost by: then the clocks do what they do, and two processes look again."""
        self.host.act(force=True, troubles=(Trouble(fault, waiting=pause), Trouble("unreachable")))
        if reboots:
            self.the_machine_reboots(abs(then.seconds), loses_mark=True, shift=shift)
        else:
            self.time(then)
        self.host.act(troubles=(Trouble("unreachable"),))
        self.host.act(force=True)

    @rule(troubles=_troubles, force=st.booleans(), horizon=_horizons)
    def all_want_it_at_once(self, troubles: tuple[Trouble, ...], force: bool, horizon: float) -> None:
        """Three processes look at the same instant, and wait for the lock one after another."""
        seen = self.host.record.generation
        self.host.act(troubles=troubles, force=force, seen=seen)
        rotated, undisturbed = self.host.record.generation, not self.onlooker.disturbed
        for _ in range(2):
            self.host.act(force=force, seen=seen, horizon=horizon)
            if rotated > seen and undisturbed and self.server.ways.life >= MINUTE:
                assert self.host.record.generation == rotated, "I3: two exchanges for one generation"

    # Those who use it, and the server.

    @rule(is_behind=st.booleans())
    def an_agent_calls(self, is_behind: bool) -> None:
        """A 401 makes a demand, once for each token; an agent may not have seen the newest."""
        if is_behind:
            self.host.demand(self.host.record.generation - 1)
        else:
            self._call()

    @rule()
    def nothing_satisfies_an_agent(self) -> None:
        """It demands each new token's successor as soon as it sees it."""
        self.false_alarm = True
        for _ in range(4):
            self._call()
            self._sleep_until_due()
            self.host.act()

    def _call(self) -> None:
        record = self.host.record
        refused = record.access_token is not None and (self.false_alarm or not self._lives())
        if refused and record.generation not in self.demanded:
            self.demanded.add(record.generation)
            self.host.demand(record.generation)

    def _lives(self) -> bool:
        access = self.host.record.access_token
        return access is not None and self.server.lives(access.reveal(), self.clock.t)

    @rule(what=st.sampled_from(["false alarm", "false alarm", "all clear", "ends an access token", "ends the login"]))
    def somebody_does_something_elsewhere(self, what: str) -> None:
        """A resource server refuses what is good, a server ends a token early, a person ends the login."""
        access = self.host.record.access_token
        if what == "ends the login":
            self.server.revoke()
        elif what != "ends an access token":
            self.false_alarm = what == "false alarm"
        elif access is not None:
            self.server.end(access.reveal(), self.clock.t)

    @precondition(lambda self: self.host.record.dead)
    @rule(login=logins())
    def a_person_logs_in_again(self, login: Login) -> None:
        """What is lost comes back, elsewhere."""
        self.is_imported(login, 0, is_old=False)

    # What must hold.

    @invariant()
    def all_decide_alike(self) -> None:
        """I9, and a horizon only ever makes a rotation earlier."""
        decision, record, wall = self.host.decide(), self.host.record, self.clock.read().wall
        for horizon in (MINUTE, HOUR):
            with_horizon = self.host.decide(horizon=horizon)
            if with_horizon == decision:
                continue
            assert isinstance(decision, Wait), "a horizon kept a rotation from being made"
            assert decision.reason == "not_due", "a horizon shortened a wait that has a reason"
            assert decision.until is not None
            assert decision.until - horizon <= wall, "a horizon reaches further than it is long"
            assert not server_behavior.refuses_early(record), "a server that refuses early would be asked early"
        if record.doubt is None and policy.seconds_until_usable(record, self.clock.read()) <= 0:
            assert isinstance(self.host.decide(force=True), Rotate), "force keeps a rotation from being made"

    @invariant()
    def each_wait_ends(self) -> None:
        """No wait has passed already, nor is it longer than its own maximum."""
        decision, record, wall = self.host.decide(), self.host.record, self.clock.read().wall
        life = policy.expected_expiry(record) - record.issued_at
        if isinstance(decision, Wait) and decision.until is not None:
            match decision.reason:
                case "transient" | "client_rejected":
                    most = HOUR
                case "not_due":
                    most = (
                        life if server_behavior.refuses_early(record) else min(0.9 * life, DAY)
                    ) + policy.CLOCK_TOLERANCE
                case "too_early" if policy.seconds_until_usable(record, self.clock.read()) > 0:
                    # A login that ends is worse than a wait by a clock that was set back.
                    most = self.onlooker.seconds_until_usable()
                case _:
                    most = max(HOUR, life)
            assert -EPSILON < decision.until - wall <= most + EPSILON, (decision, decision.until - wall, most)
        if record.failure is not None and record.failure.retry_at is not None:
            # Ten seconds doubling to five minutes, and half as much again; only a server's own word makes it longer.
            longest = {"too_early": max(life, 450.0), "transient": HOUR}.get(record.failure.outcome, 450.0)
            assert record.failure.retry_at - record.failure.at <= longest + EPSILON, "a stored wait exceeds its maximum"

    @invariant()
    def only_the_dead_are_dead(self) -> None:
        """A person is called only where nobody else can help."""
        excused = self.server.ended_by is not None or self.onlooker.misled
        assert excused or not self.host.record.dead, "a login was given up that its server has not ended"

    @rule(cron=st.booleans(), used=st.booleans())
    def all_is_well_for_a_while(self, cron: bool, used: bool) -> None:
        """What is not lost mends itself, in bounded time, under a daemon and under cron, with and without an agent."""
        self.false_alarm = False
        self.host.settle()
        host, ways, began = self.host, self.server.ways, self.clock.t
        generation = host.record.generation
        each = max(5 * MINUTE, ways.life / 8)
        can_be_kept = self.onlooker.can_be_kept(host.record, self._wait_for_next(each if cron else 0.0))
        # Where an early refresh does harm, the end of a token is waited for by a wall clock that may have been set back.
        behind = 0.0 if ways.early == "allowed" else self.onlooker.is_behind_by()
        longest = 4 * ways.life + 3 * HOUR + 8 * each + 3 * behind
        healthy = False
        for _ in range(1000 + int(longest / each)):
            if used:
                self._call()
            if healthy and not cron and self.knows_life and ways.early == "allowed" and ways.life >= MINUTE:
                assert self._lives(), "a healthy token ended before it was renewed"
            host.act(horizon=each if cron else 0.0)
            record = host.record
            healthy = self._lives() and record.failure is None and self.onlooker.knows_the_time()
            if record.dead or (record.generation > generation + 1 and record.failure is None and self._lives()):
                break
            assert self.clock.t - began < longest, f"it does not mend itself: {host.decide()}"
            if cron:
                self.clock.happen(Happening("passes", each))
            else:
                self._sleep_until_due()
        else:
            raise AssertionError("it never rests")
        assert self.server.ended_by is None or not can_be_kept, "a login was lost that a perfect client would keep"

    def _wait_for_next(self, each: float) -> float:
        """Return the seconds to the next exchange: a patient daemon's, or that of a cron that runs ``each`` so often."""
        patience = self.host.patience()
        return patience if each == 0.0 else -(-patience // each) * each


def test_no_login_is_lost_that_could_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, some order of troubles would cost a person a new login, or agents their live access token."""
    caplog.set_level(logging.CRITICAL, "refresher")  # what thousands of kills leave is no news
    examples = settings().max_examples * 3 // 4  # each is a walk of thirty steps
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=examples, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]),
    )
