"""Random walks of one login through errors: a state machine of grant, policy, exchange and a model of a server.

Each walk draws a server with a correct configuration (``tests.support.logins``), and then events, step by step. The
product runs on a machine on which only clocks and network are fakes (``tests.support.simulated_host``). What it must never
do is checked by ``tests.support.observer``, which knows the true state of the server, and by the invariants below.
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
# The faults that leave a doubt are listed twice: most errors need one.
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
    """A login, its server, and the processes and agents that use it."""

    def __init__(self) -> None:
        super().__init__()
        self._playing = ExitStack()

    @initialize(login=logins(), knows_boot=st.integers(0, 5), is_old=st.booleans())
    def is_imported(self, login: Login, knows_boot: int, is_old: bool) -> None:
        """Import a login that was made elsewhere; ``is_old``: by a release that did not store all clocks."""
        self.teardown()
        self.server, first = login.begin()
        self.clock = SimulatedClock(knows_boot=knows_boot < 5)
        first = msgspec.structs.replace(first, issued=None if is_old else self.clock.read())
        self.host = SimulatedHost(self.server, self.clock, first)
        self._playing.callback(self.host.close)
        self.observer = self.host.observer
        self.false_alarm = False
        self.knows_life = self.server.ways.tells_life or self.server.ways.life == (
            server_behavior.access_token_lifetime(first) or policy.DEFAULT_MAX_AGE
        )
        self.demanded: set[int] = set()
        """Generations that an agent has demanded; each is demanded once."""

    def teardown(self) -> None:
        """Remove the fakes."""
        self._playing.close()

    # Time.

    @rule(happening=_happenings)
    def time(self, happening: Happening) -> None:
        """Time passes, the machine sleeps, or the wall clock is set: by a person, by NTP, after a dead battery."""
        self.clock.happen(happening)
        self.observer.disturbed |= happening.what == "is set"

    @rule(seconds=_spans, loses_mark=st.booleans(), shift=st.sampled_from([0.0, None]) | _shifts)
    def the_machine_reboots(self, seconds: float, loses_mark: bool, shift: float | None) -> None:
        """A mark that was not synced may be lost; the clock of a machine without a battery continues where it stopped."""
        self.host.reboot(seconds, loses_mark=loses_mark)
        self.clock.happen(Happening("is set", -seconds if shift is None else shift))

    # Processes that rotate.

    @rule(troubles=_troubles)
    def the_daemon_rotates_on_schedule(self, troubles: tuple[Trouble, ...]) -> None:
        """The scheduled time has come."""
        self._sleep_until_due()
        self.host.act(troubles=troubles)

    def _sleep_until_due(self) -> None:
        decision = self.host.decide()
        if isinstance(decision, Wait) and decision.until is not None:
            self.clock.happen(Happening("passes", max(decision.until - self.clock.read().wall, 0.0) + EPSILON / 10))

    @rule(fault=st.sampled_from(_OUTAGES), times=st.sampled_from([2, 4, 11]))
    def an_outage_lasts_for_several_attempts(self, fault: Fault, times: int) -> None:
        """The daemon retries during the outage."""
        for _ in range(times):
            self._sleep_until_due()
            self.host.act(troubles=(Trouble(fault), Trouble(fault)))

    @rule(troubles=_troubles, horizon=_horizons | st.just(0.0))
    def run_once(self, troubles: tuple[Trouble, ...], horizon: float) -> None:
        """Cron or a person runs it."""
        self.host.act(troubles=troubles, horizon=horizon)

    @rule(troubles=_troubles)
    def run_once_with_force(self, troubles: tuple[Trouble, ...]) -> None:
        """A person does not want to wait for the backoff."""
        self.host.act(troubles=troubles, force=True)

    @rule(fault=_losses, pause=_pauses, then=_happenings, reboots=st.booleans(), shift=st.sampled_from([None, -DAY]))
    def an_answer_is_lost(
        self, fault: Fault, pause: Happening, then: Happening, reboots: bool, shift: float | None
    ) -> None:
        """The most frequent cause of a lost login; then the clocks change, and two processes try again."""
        self.host.act(force=True, troubles=(Trouble(fault, waiting=pause), Trouble("unreachable")))
        if reboots:
            self.the_machine_reboots(abs(then.seconds), loses_mark=True, shift=shift)
        else:
            self.time(then)
        self.host.act(troubles=(Trouble("unreachable"),))
        self.host.act(force=True)

    @rule(troubles=_troubles, force=st.booleans(), horizon=_horizons)
    def three_processes_rotate_at_once(self, troubles: tuple[Trouble, ...], force: bool, horizon: float) -> None:
        """Three processes decide at the same time, and take the lock one after another."""
        seen = self.host.record.generation
        self.host.act(troubles=troubles, force=force, seen=seen)
        rotated, undisturbed = self.host.record.generation, not self.observer.disturbed
        for _ in range(2):
            self.host.act(force=force, seen=seen, horizon=horizon)
            if rotated > seen and undisturbed and self.server.ways.life >= MINUTE:
                assert self.host.record.generation == rotated, "I3: two exchanges for one generation"

    # Agents and the server.

    @rule(is_behind=st.booleans())
    def an_agent_calls(self, is_behind: bool) -> None:
        """A 401 causes a demand, once for each token; an agent may have an older token."""
        if is_behind:
            self.host.demand(self.host.record.generation - 1)
        else:
            self._call()

    @rule()
    def every_new_token_is_demanded(self) -> None:
        """A resource server refuses every token, so an agent demands the next one each time."""
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
    def another_party_changes_something(self, what: str) -> None:
        """A resource server refuses a good token, a server ends a token early, or a person ends the login."""
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
        """A person replaces a login that is lost."""
        self.is_imported(login, 0, is_old=False)

    # Invariants.

    @invariant()
    def cron_and_daemon_decide_alike(self) -> None:
        """I9; a horizon can only make a rotation earlier."""
        decision, record, wall = self.host.decide(), self.host.record, self.clock.read().wall
        for horizon in (MINUTE, HOUR):
            with_horizon = self.host.decide(horizon=horizon)
            if with_horizon == decision:
                continue
            assert isinstance(decision, Wait), "a horizon prevents a rotation"
            assert decision.reason == "not_due", "a horizon shortens a wait that has another reason"
            assert decision.until is not None
            assert decision.until - horizon <= wall, "a horizon makes a rotation earlier than its own length"
            assert not server_behavior.refuses_early(record), "a server that refuses early gets an early request"
        if record.doubt is None and policy.seconds_until_usable(record, self.clock.read()) <= 0:
            assert isinstance(self.host.decide(force=True), Rotate), "force prevents a rotation"

    @invariant()
    def each_wait_ends(self) -> None:
        """A wait ends in the future, and is not longer than its maximum."""
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
                    # A long wait after a clock was set back is better than a lost login.
                    most = self.observer.seconds_until_usable()
                case _:
                    most = max(HOUR, life)
            assert -EPSILON < decision.until - wall <= most + EPSILON, (decision, decision.until - wall, most)
        if record.failure is not None and record.failure.retry_at is not None:
            # 10 s doubling to 5 min, plus 50 %; only Retry-After of the server makes it longer.
            longest = {"too_early": max(life, 450.0), "transient": HOUR}.get(record.failure.outcome, 450.0)
            assert record.failure.retry_at - record.failure.at <= longest + EPSILON, "a stored wait exceeds its maximum"

    @invariant()
    def only_a_login_that_its_server_ended_is_dead(self) -> None:
        """A person is needed only where refresher cannot continue."""
        excused = self.server.ended_by is not None or self.observer.misled
        assert excused or not self.host.record.dead, "a login is dead that its server has not ended"

    @rule(cron=st.booleans(), used=st.booleans())
    def the_login_recovers_in_limited_time(self, cron: bool, used: bool) -> None:
        """Without further errors, a login that is not lost recovers, with a daemon or cron, with or without an agent."""
        self.false_alarm = False
        self.host.settle()
        host, ways, began = self.host, self.server.ways, self.clock.t
        generation = host.record.generation
        each = min(max(5 * MINUTE, ways.life / 8), (ways.refresh_life or DAY) / 8)
        can_be_kept = self.observer.can_be_kept(host.record, self._wait_for_next(each if cron else 0.0))
        # Where an early refresh does harm, refresher waits for the expiry by a wall clock that may have been set back.
        behind = 0.0 if ways.early == "allowed" else self.observer.is_behind_by()
        longest = 4 * ways.life + 3 * HOUR + 8 * each + 3 * behind
        healthy = False
        for _ in range(1000 + int(longest / each)):
            if used:
                self._call()
            if healthy and not cron and self.knows_life and ways.early == "allowed" and ways.life >= MINUTE:
                assert self._lives(), "a healthy token expired before its refresh"
            host.act(horizon=each if cron else 0.0)
            record = host.record
            healthy = self._lives() and record.failure is None and self.observer.knows_the_time()
            if record.dead or (record.generation > generation + 1 and record.failure is None and self._lives()):
                break
            assert self.clock.t - began < longest, f"it does not recover: {host.decide()}"
            if cron:
                self.clock.happen(Happening("passes", each))
            else:
                self._sleep_until_due()
        else:
            raise AssertionError("it never settles")
        assert self.server.ended_by is None or not can_be_kept, "a login is lost that a perfect client would keep"

    def _wait_for_next(self, each: float) -> float:
        """Return the seconds to the next exchange by a daemon, or by cron every ``each`` seconds."""
        patience = self.host.patience()
        return patience if each == 0.0 else -(-patience // each) * each


def test_no_login_is_lost_that_a_perfect_client_would_keep(caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, errors in some order would force a person to log in again, or end a live access token of agents."""
    caplog.set_level(logging.CRITICAL, "refresher")  # thousands of kills leave thousands of warnings
    examples = settings().max_examples // 5  # each is a walk of thirty steps
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=examples, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]),
    )
