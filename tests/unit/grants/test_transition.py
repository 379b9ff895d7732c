"""The state of a grant after each outcome."""

from typing import Any

import msgspec
import pytest

from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantRejected,
    NotSent,
    Outcome,
    TokensIssued,
    TooEarly,
    Transient,
    Unreadable,
)
from refresher.grants.policy import Wait
from refresher.grants.record import Grant
from refresher.grants.transition import apply, mark_in_doubt, mark_interrupted
from shim._source import EXPIRING
from tests.support.samples import NOON, REFRESH, at, doubt, failure, grant, jwt

LATER = at(NOON + 3000)
FAILED: list[Outcome] = [
    NotSent(description="nothing was sent: refused"),
    Transient(code="temporarily_unavailable", description="503"),
    TooEarly(code="invalid_grant", description="too early"),
    Ambiguous(description="lost"),
    Unreadable(description="HTML", body=Secret("<html>")),
    ClientRejected(code="invalid_client", description="401"),
    GrantRejected(code="invalid_grant", description="400"),
]


def _apply(before: Grant, outcome: Outcome, *, demanded: bool = False, **changed: Any) -> Grant:
    times = {"sent": LATER, "now": LATER} | changed
    return apply(before, outcome, demanded=demanded, generation=before.generation + 1, **times)


def _rotated(**changes: Any) -> TokensIssued:
    fields: dict[str, Any] = {
        "access_token": Secret("new-access"),
        "token_type": "Bearer",
        "expires_in": 3600.0,
        "expires_at": None,
        "refresh_token": Secret("new-refresh"),
        "scope": None,
    }
    return TokensIssued(**(fields | changes))


@pytest.mark.parametrize("outcome", FAILED, ids=lambda outcome: type(outcome).__name__)
def test_a_failure_keeps_both_tokens_and_the_generation(outcome: Outcome) -> None:
    """If it failed, a failed refresh would lose a refresh token or withdraw a valid access token (I5, I6)."""
    before = grant()
    changed = _apply(before, outcome)
    for field in ("refresh_token", "access_token", "expires_at", "generation", "grant_id", "spent", "last_rotation_at"):
        assert getattr(changed, field) == getattr(before, field)
    assert changed.failure is not None


@pytest.mark.parametrize("outcome", FAILED, ids=lambda outcome: type(outcome).__name__)
def test_a_failure_is_followed_by_a_wait(outcome: Outcome) -> None:
    """If it failed, refresher would send requests without pause during an outage."""
    assert isinstance(policy.decide(_apply(grant(), outcome), LATER), Wait)


def test_a_token_that_needs_a_proof_is_not_used_and_its_refresh_token_is_kept() -> None:
    """If it failed, agents would get a token that every API refuses, or the only valid refresh token would be lost."""
    before = grant(doubt=doubt())
    changed = _apply(before, _rotated(token_type="DPoP"))
    assert (changed.access_token, changed.generation) == (before.access_token, before.generation)
    assert (changed.refresh_token, changed.spent) == (Secret("new-refresh"), (REFRESH.fingerprint(),))
    assert (changed.dead, changed.doubt) == (True, None)
    assert changed.failure is not None
    assert changed.failure.code == "unsupported_token_type"
    assert changed.failure.description.startswith("the server now issues DPoP tokens")


def test_a_rotation_replaces_the_tokens_and_clears_the_failure() -> None:
    """If it failed, an old failure would outlive a success, or a used refresh token could be imported again."""
    before = grant(doubt=doubt(), failure=failure(), failures=7, dead=True)
    changed = _apply(before, _rotated())
    assert changed.refresh_token == Secret("new-refresh")
    assert changed.access_token == Secret("new-access")
    assert (changed.failure, changed.doubt, changed.failures, changed.dead) == (None, None, 0, False)
    assert changed.spent == (REFRESH.fingerprint(),)
    assert changed.generation == before.generation + 1
    assert changed.scope == before.scope


def test_a_lifetime_counts_from_the_sending_of_the_request() -> None:
    """If it failed, tokens of a slow server would seem to expire later than they do."""
    changed = _apply(grant(), _rotated(), sent=at(NOON + 2990), now=at(NOON + 3000))
    assert (changed.issued_at, changed.expires_at) == (NOON + 2990, NOON + 2990 + 3600)
    assert changed.issued == at(NOON + 2990)


@pytest.mark.parametrize(("ahead", "usable_from"), [(0.0, NOON + 5700), (-600.0, NOON + 6300), (600.0, NOON + 5100)])
def test_nbf_counts_by_the_clock_of_the_server(ahead: float, usable_from: float) -> None:
    """If it failed, a server whose clock is behind would get its refresh token too early, and end the login."""
    fresh = Secret(jwt(nbf=NOON + 5700))
    assert _apply(grant(), _rotated(refresh_token=fresh, clock_skew=ahead)).not_before == usable_from


def test_nbf_does_not_depend_on_the_local_clock() -> None:
    """If it failed, a local clock that is days behind would send a refresh token early, and end the login."""
    fresh = Secret(jwt(iat=NOON + 3000 + 2 * 86400, nbf=NOON + 5700 + 2 * 86400))
    changed = _apply(grant(), _rotated(refresh_token=fresh))
    assert (changed.not_before, policy.due_at(changed)) == (NOON + 5700, NOON + 5700)
    set_back = at(NOON - 86400, lasted=3010)
    changed = _apply(grant(), _rotated(refresh_token=fresh), now=set_back)
    assert (changed.not_before, policy.seconds_until_usable(changed, set_back)) == (NOON + 5710, 2700)


@pytest.mark.parametrize("fresh", [None, Secret("refresh-token-of-generation-3")])
def test_a_refresh_token_that_stays_is_not_marked_as_used(fresh: Secret | None) -> None:
    """If it failed, Google's refresh token would count as used, and its grant could never be imported again."""
    changed = _apply(grant(), _rotated(refresh_token=fresh))
    assert changed.refresh_token == grant().refresh_token
    assert changed.spent == ()


@pytest.mark.parametrize("outcome", [Ambiguous(description="x"), Unreadable(description="x", body=Secret("y"))])
def test_a_doubt_begins_with_the_sending_of_the_request(outcome: Outcome) -> None:
    """If it failed, the grace period would count from the timeout, and a replay could come after its end."""
    changed = _apply(grant(), outcome, sent=at(NOON + 2980), now=at(NOON + 3000))
    assert changed.doubt == doubt(at(NOON + 2980))


@pytest.mark.parametrize(("replay", "at_once"), [(0.0, False), (30.0, True), (5.0, False), (None, True)])
def test_the_replay_of_an_interrupted_attempt_is_due_at_once(replay: float | None, at_once: bool) -> None:
    """If it failed, a backoff would use up the grace period in which the grant can be saved after a kill."""
    now = at(NOON + 10)
    changed = mark_interrupted(grant(replay=replay), "killed", doubt=doubt(), now=now)
    assert (policy.decide(changed, now) == policy.Rotate("retry")) is at_once
    assert changed.doubt == doubt()


def test_an_interrupted_attempt_at_a_rejected_grant_keeps_the_rejection() -> None:
    """If it failed, the token file of a rejected grant would announce a retry that never comes."""
    rejection = failure(outcome="reauthorization_required", retry_at=None)
    changed = mark_interrupted(
        grant(dead=True, failure=rejection, replay=None), "killed", doubt=doubt(), now=at(NOON + 10)
    )
    assert changed.failure == rejection


def test_the_earliest_doubt_counts() -> None:
    """If it failed, every lost answer would restart the grace period, and a replay could come too late."""
    first = mark_in_doubt(grant(), "lost", doubt=doubt(at(NOON)), now=at(NOON + 20))
    second = mark_in_doubt(first, "lost again", doubt=doubt(at(NOON + 500)), now=at(NOON + 520))
    assert second.doubt == first.doubt
    assert second.failures == 2


@pytest.mark.parametrize("outcome", [NotSent(description="x"), Transient(code="x", description="x")])
def test_a_failure_does_not_clear_a_doubt(outcome: Outcome) -> None:
    """If it failed, after a lost answer and a 503, a used refresh token would be sent while an access token is valid (I1)."""
    assert _apply(grant(doubt=doubt()), outcome).doubt == doubt()


def test_a_rejection_after_a_doubt_says_that_the_rotation_was_lost() -> None:
    """If it failed, the message would blame the server for a lost answer."""
    changed = _apply(grant(doubt=doubt()), GrantRejected(code="invalid_grant", description="400 invalid_grant"))
    assert changed.dead
    assert changed.failure is not None
    assert "lost" in changed.failure.description


def test_a_rejection_after_an_unreadable_answer_names_the_saved_file() -> None:
    """If it failed, a person would log in again although the lost token is in a file beside the record."""
    unread = Unreadable(description="HTML", body=Secret("<html>"), kept="it is kept as linear.answer.7")
    for before in (grant(), grant(doubt=doubt())):
        doubtful = _apply(before, unread)
        again = _apply(doubtful, Ambiguous(description="lost again"))
        for last in (doubtful, again):
            changed = _apply(last, GrantRejected(code="invalid_grant", description="400 invalid_grant"))
            assert changed.failure is not None
            assert "could not be read (it is kept as linear.answer.7)" in changed.failure.description


def test_retry_after_delays_the_other_grants_of_the_server_only_for_that_time() -> None:
    """If it failed, the long backoff of one grant would delay all other grants of its server."""
    busy = Transient(code="x", description="429", retry_after=2.0)
    changed = _apply(grant(failures=8), busy)
    assert changed.failure is not None
    assert changed.failure.busy_until == LATER.wall + 2
    assert changed.failure.retry_at is not None
    assert changed.failure.retry_at > LATER.wall + 60
    for outcome in (Transient(code="x", description="503"), msgspec.structs.replace(busy, refusal=True)):
        failed = _apply(grant(), outcome).failure
        assert failed is not None
        assert failed.busy_until is None


def test_a_second_rejection_keeps_the_first_description() -> None:
    """If it failed, a forced attempt would remove the message that an answer was lost."""
    rejection = GrantRejected(code="invalid_grant", description="400")
    first = _apply(grant(doubt=doubt()), rejection)
    second = _apply(first, rejection)
    assert first.failure is not None
    assert second.failure is not None
    assert second.failure.description == first.failure.description


def test_a_forced_attempt_that_settles_nothing_keeps_the_rejection() -> None:
    """If it failed, a rejected grant would look valid to agents, and be retried without a person."""
    dead = grant(dead=True, failure=failure(outcome="reauthorization_required", code="invalid_grant", retry_at=None))
    changed = _apply(dead, Ambiguous(description="lost"))
    assert changed.dead
    assert changed.failure == dead.failure
    assert changed.doubt is not None


@pytest.mark.parametrize(
    ("retry_after", "least", "most"), [(None, 5, 15), (60.0, 60, 60), (1e9, 3600, 3600), (1.0, 5, 15)]
)
def test_the_longer_wait_counts_up_to_an_hour(retry_after: float | None, least: float, most: float) -> None:
    """If it failed, Retry-After would be ignored, or a very large one would stop a grant."""
    changed = _apply(grant(), Transient(code="x", description="429", retry_after=retry_after))
    assert changed.failure is not None
    assert changed.failure.retry_at is not None
    assert least <= changed.failure.retry_at - LATER.wall <= most


def test_demanded_rotations_are_counted_until_a_scheduled_one() -> None:
    """If it failed, a server that always answers 401 would use up a grant."""
    early, due = at(NOON + 60), at(NOON + 3000)
    once = _apply(grant(), _rotated(), demanded=True, sent=early, now=early)
    assert once.demanded == 1
    twice = _apply(grant(demanded=1), _rotated(), demanded=True, sent=early, now=early)
    assert twice.demanded == 2
    assert _apply(grant(demanded=2), _rotated(), demanded=True, sent=due, now=due).demanded == 0
    assert _apply(grant(demanded=2), _rotated(), sent=early, now=early).demanded == 0


@pytest.mark.parametrize("behind", [0.0, 30.0, 86400.0])
def test_an_early_refusal_is_followed_by_a_wait_with_any_clock(behind: float) -> None:
    """If it failed, refresher would ask a server that refuses early again and again without a wait."""
    now = at(NOON - behind)
    early = TooEarly(code="invalid_grant", description="too early")
    changed = _apply(grant(refuses_early=True), early, sent=now, now=now)
    decision = policy.decide(changed, at(now.wall + 1))
    assert isinstance(decision, Wait)
    assert decision.reason == "too_early"
    assert decision.until is not None
    assert 5 <= decision.until - now.wall <= 3600
    if behind == 0:
        assert decision.until == NOON + 3600, "it does not wait for the expiry"


def test_an_early_refusal_keeps_a_rejection() -> None:
    """If it failed, a rejected grant would be published without its reason."""
    rejection = failure(outcome="reauthorization_required", retry_at=None)
    assert _apply(grant(dead=True, failure=rejection), TooEarly(code="x", description="x")).failure == rejection


def test_a_success_after_an_early_rejection_marks_the_server() -> None:
    """If it failed, every early refusal would need a person."""
    refused = failure(outcome="reauthorization_required", at=NOON + 100, retry_at=None)
    assert _apply(grant(dead=True, failure=refused), _rotated()).refuses_early
    late = failure(outcome="reauthorization_required", at=NOON + 4000, retry_at=None)
    assert not _apply(grant(dead=True, failure=late), _rotated()).refuses_early
    assert not _apply(grant(dead=True, failure=refused, expires_at=None), _rotated()).refuses_early
    assert _apply(grant(refuses_early=True), _rotated()).refuses_early, "the observation is lost"


ORIGIN = "https://mcp.example"


def _demanded(before: Grant, origin: str | None = ORIGIN) -> Grant:
    """Rotate at a demand, a minute after the last rotation."""
    now = at((before.last_rotation_at or NOON) + 60)
    return apply(before, _rotated(), sent=now, now=now, demanded=True, generation=before.generation + 1, reason=origin)


def test_the_second_generation_in_a_row_that_is_demanded_says_who_refuses_it() -> None:
    """If it failed, a grant whose every token is refused would look healthy."""
    once = _demanded(grant())
    assert (once.demanded, once.token_rejected) == (1, None)
    twice = _demanded(once)
    assert twice.token_rejected is not None
    assert twice.token_rejected.origin == ORIGIN
    assert (twice.failures, twice.failure, twice.dead) == (0, None, False)
    again = _demanded(twice, None).token_rejected
    assert again == twice.token_rejected, "the time changes, or the origin is forgotten"


def test_tokens_that_expire_too_soon_for_a_reader_are_not_refused() -> None:
    """If it failed, a reader with a long --min-valid would make a healthy grant look refused, or hide that one is."""
    often = _demanded(_demanded(_demanded(grant()), EXPIRING), EXPIRING)
    assert (often.demanded, often.token_rejected) == (3, None), "the pauses do not grow, or the grant looks refused"
    refused = _demanded(_demanded(often), None)
    assert refused.token_rejected is not None
    assert refused.token_rejected.origin == ORIGIN
    assert _demanded(refused, EXPIRING).token_rejected is None


def test_a_generation_that_reaches_its_schedule_without_a_demand_ends_the_rejection() -> None:
    """If it failed, a grant would stay failing after the server accepts its tokens again, or look healthy before."""
    rejected = _demanded(_demanded(grant()))
    later = at(policy.due_at(rejected) + 1)
    times: dict[str, Any] = {"sent": later, "now": later, "generation": rejected.generation + 1}
    assert apply(rejected, _rotated(), demanded=False, **times).token_rejected is None
    assert apply(rejected, _rotated(), demanded=True, **times).token_rejected == rejected.token_rejected
    assert apply(rejected, _rotated(), demanded=False, forced=True, **times).token_rejected == rejected.token_rejected
    for outcome in FAILED:
        assert apply(rejected, outcome, demanded=False, **times).token_rejected == rejected.token_rejected
