"""What an outcome makes of a grant."""

from typing import Any

import msgspec
import pytest

from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    NotSent,
    Outcome,
    Rotated,
    TooEarly,
    Transient,
    Unintelligible,
)
from refresher.grants.policy import Rest
from refresher.grants.record import Grant
from refresher.grants.transition import after, cut_off, doubted
from tests.support.samples import NOON, REFRESH, at, doubt, failure, grant, jwt

LATER = at(NOON + 3000)
FAILED: list[Outcome] = [
    NotSent(description="nothing was sent: refused"),
    Transient(code="temporarily_unavailable", description="503"),
    TooEarly(code="invalid_grant", description="too early"),
    Ambiguous(description="lost"),
    Unintelligible(description="HTML", answer=Secret("<html>")),
    ClientRejected(code="invalid_client", description="401"),
    GrantDead(code="invalid_grant", description="400"),
]


def _after(before: Grant, outcome: Outcome, *, demanded: bool = False, **sent: Any) -> Grant:
    times = {"first_sent": LATER, "last_sent": LATER, "now": LATER} | sent
    return after(before, outcome, demanded=demanded, generation=before.generation + 1, **times)


def _rotated(**changes: Any) -> Rotated:
    fields: dict[str, Any] = {
        "access_token": Secret("new-access"),
        "token_type": "Bearer",
        "expires_in": 3600.0,
        "expires_at": None,
        "refresh_token": Secret("new-refresh"),
        "scope": None,
    }
    return Rotated(**(fields | changes))


@pytest.mark.parametrize("outcome", FAILED, ids=lambda outcome: type(outcome).__name__)
def test_a_failure_keeps_both_tokens_and_the_generation(outcome: Outcome) -> None:
    """If it failed, a refresh token would be lost, or a live access token withdrawn, because a refresh failed (I5, I6)."""
    before = grant()
    changed = _after(before, outcome)
    for field in ("refresh_token", "access_token", "expires_at", "generation", "grant_id", "spent", "last_rotation_at"):
        assert getattr(changed, field) == getattr(before, field)
    assert changed.failure is not None


@pytest.mark.parametrize("outcome", FAILED, ids=lambda outcome: type(outcome).__name__)
def test_a_failure_is_followed_by_a_wait(outcome: Outcome) -> None:
    """If it failed, an outage would be met with a storm of requests."""
    assert isinstance(policy.decide(_after(grant(), outcome), LATER), Rest)


def test_a_rotation_replaces_settles_and_remembers() -> None:
    """If it failed, old trouble would outlive a good answer, or a spent token could be imported again."""
    before = grant(doubt=doubt(), failure=failure(), failures=7, dead=True)
    changed = _after(before, _rotated())
    assert changed.refresh_token == Secret("new-refresh")
    assert changed.access_token == Secret("new-access")
    assert (changed.failure, changed.doubt, changed.failures, changed.dead) == (None, None, 0, False)
    assert changed.spent == (REFRESH.fingerprint(),)
    assert changed.generation == before.generation + 1
    assert changed.scope == before.scope


def test_time_counts_from_when_the_request_left() -> None:
    """If it failed, a slow server would make tokens seem to live longer than they do."""
    changed = _after(grant(), _rotated(), last_sent=at(NOON + 2990), now=at(NOON + 3000))
    assert (changed.issued_at, changed.expires_at) == (NOON + 2990, NOON + 2990 + 3600)
    assert changed.issued == at(NOON + 2990)


@pytest.mark.parametrize(("ahead", "usable_from"), [(0.0, NOON + 5700), (-600.0, NOON + 6300), (600.0, NOON + 5100)])
def test_what_a_refresh_token_says_of_its_time_counts_by_its_servers_clock(ahead: float, usable_from: float) -> None:
    """If it failed, a server whose clock is behind would get its refresh token too early, and end the whole login."""
    fresh = Secret(jwt(nbf=NOON + 5700))
    assert _after(grant(), _rotated(refresh_token=fresh, clock_ahead=ahead)).not_before == usable_from


def test_what_a_refresh_token_says_of_its_time_needs_no_clock_of_ours() -> None:
    """If it failed, a clock that is days behind would make a refresh token be used early, and end the whole login."""
    fresh = Secret(jwt(iat=NOON + 3000 + 2 * 86400, nbf=NOON + 5700 + 2 * 86400))
    changed = _after(grant(), _rotated(refresh_token=fresh))
    assert (changed.not_before, policy.due_at(changed)) == (NOON + 5700, NOON + 5700)
    set_back = at(NOON - 86400, lasted=3010)
    changed = _after(grant(), _rotated(refresh_token=fresh), now=set_back)
    assert (changed.not_before, policy.unusable_for(changed, set_back)) == (NOON + 5710, 2700)


@pytest.mark.parametrize("fresh", [None, Secret("refresh-token-of-generation-3")])
def test_a_server_that_does_not_rotate_spends_nothing(fresh: Secret | None) -> None:
    """If it failed, Google's refresh token would count as spent, and its grant could never be imported again."""
    changed = _after(grant(), _rotated(refresh_token=fresh))
    assert changed.refresh_token == grant().refresh_token
    assert changed.spent == ()


@pytest.mark.parametrize("outcome", [Ambiguous(description="x"), Unintelligible(description="x", answer=Secret("y"))])
def test_a_doubt_begins_when_the_request_left(outcome: Outcome) -> None:
    """If it failed, a grace would be reckoned from the time-out, and a replay come after its end."""
    changed = _after(grant(), outcome, first_sent=at(NOON + 2980), now=at(NOON + 3000))
    assert changed.doubt == doubt(at(NOON + 2980))


@pytest.mark.parametrize(("replay", "at_once"), [(0.0, False), (30.0, True), (5.0, False), (None, True)])
def test_an_attempt_that_was_cut_off_makes_its_replay_at_once(replay: float | None, at_once: bool) -> None:
    """If it failed, a backoff would use up the grace in which a killed process's login can be saved."""
    now = at(NOON + 10)
    changed = cut_off(grant(replay=replay), "killed", doubt=doubt(), now=now)
    assert (policy.decide(changed, now) == policy.Rotate("retry")) is at_once
    assert changed.doubt == doubt()


def test_an_attempt_at_a_dead_grant_that_was_cut_off_leaves_the_verdict() -> None:
    """If it failed, agents of a dead grant would be told of an attempt that nobody makes."""
    verdict = failure(outcome="reauthorization_required", retry_at=None)
    changed = cut_off(grant(dead=True, failure=verdict, replay=None), "killed", doubt=doubt(), now=at(NOON + 10))
    assert changed.failure == verdict


def test_the_earliest_doubt_counts() -> None:
    """If it failed, every lost answer would open the grace anew, and a replay could come too late."""
    first = doubted(grant(), "lost", doubt=doubt(at(NOON)), now=at(NOON + 20))
    second = doubted(first, "lost again", doubt=doubt(at(NOON + 500)), now=at(NOON + 520))
    assert second.doubt == first.doubt
    assert second.failures == 2


@pytest.mark.parametrize("outcome", [NotSent(description="x"), Transient(code="x", description="x")])
def test_a_doubt_outlives_what_settles_nothing(outcome: Outcome) -> None:
    """If it failed, a 503 after a lost answer would let a spent token be sent while the live token needs protection (I1)."""
    assert _after(grant(doubt=doubt()), outcome).doubt == doubt()


def test_a_verdict_after_a_doubt_says_that_the_rotation_was_lost() -> None:
    """If it failed, a person would blame the server for what the network did."""
    changed = _after(grant(doubt=doubt()), GrantDead(code="invalid_grant", description="400 invalid_grant"))
    assert changed.dead
    assert changed.failure is not None
    assert "lost" in changed.failure.description


def test_a_verdict_after_an_unreadable_answer_says_where_that_is_kept() -> None:
    """If it failed, a person would log in anew although the lost token lies in a file beside the record."""
    unread = Unintelligible(description="HTML", answer=Secret("<html>"), kept="it is kept as linear.answer.7")
    for before in (grant(), grant(doubt=doubt())):
        doubtful = _after(before, unread)
        again = _after(doubtful, Ambiguous(description="lost again"))
        for last in (doubtful, again):
            changed = _after(last, GrantDead(code="invalid_grant", description="400 invalid_grant"))
            assert changed.failure is not None
            assert "could not be read (it is kept as linear.answer.7)" in changed.failure.description


def test_a_server_that_names_a_time_holds_its_other_grants_for_that_time_alone() -> None:
    """If it failed, one grant's long backoff would keep all others of its server from their rotation."""
    busy = Transient(code="x", description="429", retry_after=2.0)
    changed = _after(grant(failures=8), busy)
    assert changed.failure is not None
    assert changed.failure.busy_until == LATER.wall + 2
    assert changed.failure.retry_at is not None
    assert changed.failure.retry_at > LATER.wall + 60
    for outcome in (Transient(code="x", description="503"), msgspec.structs.replace(busy, refusal=True)):
        failed = _after(grant(), outcome).failure
        assert failed is not None
        assert failed.busy_until is None


def test_a_second_verdict_does_not_forget_what_the_first_one_told() -> None:
    """If it failed, whoever forced a dead grant once more would never read that an answer had been lost."""
    verdict = GrantDead(code="invalid_grant", description="400")
    first = _after(grant(doubt=doubt()), verdict)
    second = _after(first, verdict)
    assert first.failure is not None
    assert second.failure is not None
    assert second.failure.description == first.failure.description


def test_a_forced_try_that_tells_nothing_leaves_the_verdict() -> None:
    """If it failed, a dead grant would look alive to agents, and be retried without a person."""
    dead = grant(dead=True, failure=failure(outcome="reauthorization_required", code="invalid_grant", retry_at=None))
    changed = _after(dead, Ambiguous(description="lost"))
    assert changed.dead
    assert changed.failure == dead.failure
    assert changed.doubt is not None


@pytest.mark.parametrize(
    ("retry_after", "least", "most"), [(None, 5, 15), (60.0, 60, 60), (1e9, 3600, 3600), (1.0, 5, 15)]
)
def test_the_larger_wait_wins_up_to_an_hour(retry_after: float | None, least: float, most: float) -> None:
    """If it failed, Retry-After would be ignored, or an absurd one would park a grant."""
    changed = _after(grant(), Transient(code="x", description="429", retry_after=retry_after))
    assert changed.failure is not None
    assert changed.failure.retry_at is not None
    assert least <= changed.failure.retry_at - LATER.wall <= most


def test_demanded_rotations_are_counted_until_one_comes_on_schedule() -> None:
    """If it failed, a server that always answers 401 would burn a grant."""
    early, due = at(NOON + 60), at(NOON + 3000)
    once = _after(grant(), _rotated(), demanded=True, last_sent=early, now=early)
    assert once.demanded == 1
    twice = _after(grant(demanded=1), _rotated(), demanded=True, last_sent=early, now=early)
    assert twice.demanded == 2
    assert _after(grant(demanded=2), _rotated(), demanded=True, last_sent=due, now=due).demanded == 0
    assert _after(grant(demanded=2), _rotated(), last_sent=early, now=early).demanded == 0


@pytest.mark.parametrize("behind", [0.0, 30.0, 86400.0])
def test_an_early_refusal_is_no_hot_loop_whatever_the_clock(behind: float) -> None:
    """If it failed, a server that refuses early would be asked again at once, for ever."""
    now = at(NOON - behind)
    early = TooEarly(code="invalid_grant", description="too early")
    changed = _after(grant(refuses_early=True), early, first_sent=now, last_sent=now, now=now)
    decision = policy.decide(changed, at(now.wall + 1))
    assert isinstance(decision, Rest)
    assert decision.because == "too_early"
    assert decision.until is not None
    assert 5 <= decision.until - now.wall <= 3600
    if behind == 0:
        assert decision.until == NOON + 3600, "it does not wait for the end of the token"


def test_an_early_refusal_does_not_touch_a_verdict() -> None:
    """If it failed, a dead grant would be published without the reason of its death."""
    verdict = failure(outcome="reauthorization_required", retry_at=None)
    assert _after(grant(dead=True, failure=verdict), TooEarly(code="x", description="x")).failure == verdict


def test_a_server_that_refused_early_is_known_by_its_change_of_mind() -> None:
    """If it failed, each early refusal would call for a person."""
    refused = failure(outcome="reauthorization_required", at=NOON + 100, retry_at=None)
    assert _after(grant(dead=True, failure=refused), _rotated()).refuses_early
    late = failure(outcome="reauthorization_required", at=NOON + 4000, retry_at=None)
    assert not _after(grant(dead=True, failure=late), _rotated()).refuses_early
    assert not _after(grant(dead=True, failure=refused, expires_at=None), _rotated()).refuses_early
    assert _after(grant(refuses_early=True), _rotated()).refuses_early, "it was forgotten"
