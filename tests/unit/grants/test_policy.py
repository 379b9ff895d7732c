"""Decisions about when to rotate, as a table and as properties (I9)."""

from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refresher.common.clocks import Moment
from refresher.grants import policy
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Doubt, Grant, Login
from refresher.operations.result import Result
from tests.support.samples import NOON, at, doubt, failure, grant

HOUR = 3600.0
DAY = 86400.0
TEN_YEARS = 3650 * DAY


class Case(NamedTuple):
    """One situation and the expected decision."""

    what: str
    grant: Grant
    now: Moment
    expected: str
    options: dict[str, Any] = {}
    until: float | None = None


HEALTHY = grant()
NEW = grant(access_token=None, expires_at=None, last_rotation_at=None)
DEAD = grant(dead=True, failure=failure(outcome="reauthorization_required", retry_at=None))
FAILING = grant(failure=failure(), failures=1)
DOUBTFUL = grant(doubt=doubt(), failure=failure(outcome="in_doubt"), failures=1)
REPLAYABLE = grant(doubt=doubt(), failure=failure(outcome="in_doubt", retry_at=NOON + 5), failures=1, replay=30.0)
UNLIMITED = grant(doubt=doubt(), failure=failure(outcome="in_doubt", retry_at=NOON + 5), failures=1, replay=None)
DOUBT_WITHOUT_TOKEN = grant(doubt=doubt(), failure=failure(outcome="in_doubt"), access_token=None, expires_at=None)
DOUBT_WITHOUT_EXPIRY = grant(doubt=doubt(), failure=failure(outcome="in_doubt"), expires_at=None, max_age=600.0)
SET_AHEAD = grant(issued=at(), doubt=doubt(at(NOON + DAY + 600, lasted=600)), failure=failure(outcome="in_doubt"))
SET_BACK = msgspec.structs.replace(SET_AHEAD, doubt=doubt(at(NOON - 1800, lasted=600)))
IMPORTED_SINCE = grant(
    issued=at(NOON + 1000),
    issued_at=NOON + 1000,
    expires_at=NOON + 1000 + HOUR,
    doubt=doubt(),
    failure=failure(outcome="in_doubt"),
)
REFUSED_EARLY = grant(failure=failure(outcome="too_early", retry_at=NOON + HOUR))
BACKING_OFF = grant(failure=failure(moment=at()), failures=1)
REJECTED = grant(failure=failure(outcome="client_rejected"))
ONCE_DEMANDED = grant(demanded=1)
OFTEN_DEMANDED = grant(demanded=30)

CASES = [
    Case("a new token is due after 75 % of its lifetime", HEALTHY, at(NOON + 60), "not_due", until=policy.due_at(HEALTHY)),
    Case("the scheduled time has come", HEALTHY, at(NOON + 2700), "due"),
    Case("just before the scheduled time", HEALTHY, at(policy.due_at(HEALTHY) - 0.01), "not_due"),
    Case("the next run comes after the scheduled time", HEALTHY, at(policy.due_at(HEALTHY) - 69), "due", {"horizon": 70.0}),
    Case("the next run comes before the scheduled time", HEALTHY, at(policy.due_at(HEALTHY) - 71), "not_due", {"horizon": 70.0}),
    Case("a horizon beyond the lifetime still leaves a second", HEALTHY, at(NOON + 0.5), "not_due", {"horizon": 9999.0}),
    Case("no token yet", NEW, at(), "first"),
    Case("force", HEALTHY, at(NOON + 60), "forced", {"force": True}),
    Case("an expired token", HEALTHY, at(NOON + 2 * HOUR), "due"),
    Case("issued in the future: the clock was set back", HEALTHY, at(NOON - 61), "clock"),
    Case("issued less than a minute in the future: tolerated", HEALTHY, at(NOON - 59), "not_due"),
    Case("a demand", HEALTHY, at(NOON + 2), "demanded", {"demanded": True}),
    Case("a demand within a second of the rotation", HEALTHY, at(NOON + 0.5), "not_due", {"demanded": True}, NOON + 1),
    Case("the token of a demanded rotation is demanded", ONCE_DEMANDED, at(NOON + 29), "not_due", {"demanded": True}, NOON + 30),
    Case("the token of a demanded rotation is demanded 30 s later", ONCE_DEMANDED, at(NOON + 30), "demanded", {"demanded": True}),
    Case("demanded many times: wait for a quarter of the lifetime", OFTEN_DEMANDED, at(NOON + 899), "not_due", {"demanded": True}, NOON + 900),
    Case("demanded many times: after a quarter of the lifetime", OFTEN_DEMANDED, at(NOON + 900), "demanded", {"demanded": True}),
    Case("a demand, the clock was set back since the rotation", HEALTHY, at(NOON - 20), "demanded", {"demanded": True}),
    Case("a second demand, the clock was set back since the rotation", ONCE_DEMANDED, at(NOON - 20), "demanded", {"demanded": True}),
    Case("a demand, the clocks differ by half a second", HEALTHY, at(NOON - 0.5), "not_due", {"demanded": True}, NOON + 1),
    Case("during a backoff", FAILING, at(NOON + 99), "transient", until=NOON + 100),
    Case("the backoff is over", FAILING, at(NOON + 100), "retry"),
    Case("force skips a backoff", FAILING, at(NOON + 1), "forced", {"force": True}),
    Case("a demand does not skip a backoff", FAILING, at(NOON + 0.5), "transient", {"demanded": True}, NOON + 1),
    Case("a demand shortens a backoff", FAILING, at(NOON + 1), "retry", {"demanded": True}),
    Case("a backoff beyond the maximum comes from a changed clock", FAILING, at(NOON - DAY), "retry"),
    Case("during a backoff, clock set back: the boot clock counts", BACKING_OFF, at(NOON - 1800, lasted=40), "transient", until=NOON - 1740),
    Case("during a backoff, clock set back: over by the boot clock", BACKING_OFF, at(NOON - 1800, lasted=100), "retry"),
    Case("during a backoff, clock set ahead: the wait stays", BACKING_OFF, at(NOON + DAY, lasted=40), "transient", until=NOON + DAY + 60),
    Case("during a backoff, another boot: the wall clock counts", BACKING_OFF, at(NOON + 40, boot="boot-2"), "transient", until=NOON + 100),
    Case("during a backoff, a restored snapshot: not longer than the backoff", BACKING_OFF, at(NOON + 40, lasted=-5000), "transient", until=NOON + 140),
    Case("the client was rejected", REJECTED, at(NOON + 1), "client_rejected", until=NOON + 100),
    Case("a rejected grant", DEAD, at(NOON + 10 * HOUR), "reauthorization_required", {"demanded": True}),
    Case("a rejected grant, forced", DEAD, at(NOON + 1), "forced", {"force": True}),
    Case("refused early: wait for the expiry", REFUSED_EARLY, at(NOON + 3000), "too_early", until=NOON + HOUR),
    Case("refused early, at the expiry", REFUSED_EARLY, at(NOON + HOUR), "retry"),
    Case("refused early: wait also for a long lifetime", grant(expires_at=NOON + DAY, failure=failure(outcome="too_early", retry_at=NOON + DAY)), at(NOON + HOUR), "too_early", until=NOON + DAY),
    Case("refused early: a backoff can exceed a short lifetime", grant(expires_at=NOON + 5, failure=failure(outcome="too_early", retry_at=NOON + 12)), at(NOON + 6), "too_early", until=NOON + 12),
    Case("in doubt: wait for the expiry", DOUBTFUL, at(NOON + 200), "in_doubt", until=NOON + HOUR),
    Case("in doubt: force does not skip the wait", DOUBTFUL, at(NOON + 200), "in_doubt", {"force": True}, NOON + HOUR),
    Case("in doubt, rejected and forced: force does not skip the wait", grant(dead=True, doubt=doubt()), at(NOON + 1), "reauthorization_required", {"force": True}, NOON + HOUR),
    Case("in doubt: a demand ends the wait", DOUBTFUL, at(NOON + 200), "retry", {"demanded": True}),
    Case("in doubt and demanded: after the ordinary backoff", DOUBTFUL, at(NOON + 1), "in_doubt", {"demanded": True}, NOON + 100),
    Case("in doubt, at the expiry", DOUBTFUL, at(NOON + HOUR), "retry"),
    Case("in doubt without an access token: nothing to protect", DOUBT_WITHOUT_TOKEN, at(NOON + 100), "retry"),
    Case("in doubt, lifetime unknown: the maximum age counts", DOUBT_WITHOUT_EXPIRY, at(NOON + 599), "in_doubt", until=NOON + 600),
    Case("a replay in the grace period, after the backoff", REPLAYABLE, at(NOON + 6), "retry"),
    Case("a replay in the grace period, during the backoff", REPLAYABLE, at(NOON + 4), "in_doubt", until=NOON + 5),
    Case("the grace period is over", REPLAYABLE, at(NOON + 31), "in_doubt", until=NOON + HOUR),
    Case("the grace period is over by the boot clock", REPLAYABLE, at(NOON + 6, lasted=31), "in_doubt"),
    Case("the grace period is over by the wall clock", REPLAYABLE, at(NOON + 31, lasted=6), "in_doubt"),
    Case("in another boot the grace period counts as over", REPLAYABLE, at(NOON + 6, boot="boot-2"), "in_doubt"),
    Case("a grace period with an unknown start counts as over", grant(doubt=Doubt(since=at(), replay_over=True), failure=failure(outcome="in_doubt"), replay=3600.0), at(NOON + 101), "in_doubt", until=NOON + HOUR),
    Case("refused early and demanded", msgspec.structs.replace(REFUSED_EARLY, failures=1), at(NOON + 16), "demanded", {"demanded": True}),
    Case("refused early and demanded: after the ordinary backoff", msgspec.structs.replace(REFUSED_EARLY, failures=1), at(NOON + 4), "too_early", {"demanded": True}),
    Case("a replay without end", UNLIMITED, at(NOON + 6, boot="boot-2"), "retry"),
    Case("in doubt, clock set back: the boot clock counts", DOUBTFUL, at(NOON - DAY, lasted=HOUR), "retry"),
    Case("in doubt, clock set back, not over yet", DOUBTFUL, at(NOON - DAY, lasted=60), "in_doubt", until=NOON - DAY + 3540),
    Case("in doubt, clock set back before: the lifetime at most", grant(issued_at=NOON + DAY, expires_at=NOON + DAY + HOUR, doubt=doubt()), at(NOON), "in_doubt", until=NOON + HOUR),
    Case("in doubt, another boot, clock set back: not before a lifetime", DOUBTFUL, at(NOON - DAY, boot="boot-2"), "in_doubt", until=NOON - DAY + HOUR),
    Case("in doubt, another boot, an hour later", DOUBTFUL, at(NOON + HOUR, boot="boot-2"), "retry"),
    Case("in doubt, clock set ahead before: the token is still valid", SET_AHEAD, at(NOON + DAY + 700, lasted=700), "in_doubt", {"force": True}, NOON + DAY + HOUR),
    Case("in doubt, clock set ahead before: at the true expiry", SET_AHEAD, at(NOON + DAY + HOUR, lasted=HOUR), "retry"),
    Case("in doubt, clock set ahead before, then another boot", SET_AHEAD, at(NOON + DAY + 700, boot="boot-2"), "in_doubt", until=NOON + DAY + HOUR),
    Case("in doubt, clock set ahead before and back since", SET_AHEAD, at(NOON + 700), "in_doubt", until=NOON + HOUR),
    Case("in doubt, clock set back earlier", SET_BACK, at(NOON - 1700, lasted=700), "in_doubt", until=NOON + 1200),
    Case("in doubt, clock set back earlier: at the true expiry", SET_BACK, at(NOON + 1200, lasted=HOUR), "retry"),
    Case("in doubt, issued by the later boot clock of a snapshot: the wall clock counts", msgspec.structs.replace(DOUBTFUL, issued=at(lasted=DAY)), at(NOON + HOUR), "retry"),
    Case("in doubt, and the access token is newer: wait for its expiry", IMPORTED_SINCE, at(NOON + HOUR + 100), "in_doubt", until=NOON + 1000 + HOUR),
    Case("in doubt, clock set ahead: the token is still valid", DOUBTFUL, at(NOON + DAY, lasted=60), "in_doubt", until=NOON + DAY + 3540),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_each_situation_has_its_decision(case: Case) -> None:
    """If it failed, a grant would be rotated too early or too late."""
    decision = policy.decide(case.grant, case.now, **case.options)
    assert decision.reason == case.expected
    if case.until is not None:
        assert isinstance(decision, Wait)
        assert decision.until == pytest.approx(case.until)


times = st.floats(NOON - TEN_YEARS, NOON + TEN_YEARS)
moments = st.builds(at, times, lasted=st.floats(0, TEN_YEARS), boot=st.sampled_from(["boot-1", "boot-2", ""]))
lifetimes = st.one_of(st.none(), st.floats(0, TEN_YEARS), st.floats(0, 10))
failures = st.builds(
    failure,
    outcome=st.sampled_from(["transient", "client_rejected", "in_doubt", "too_early"]),
    at=times,
    retry_at=st.one_of(st.none(), times),
    moment=st.one_of(st.none(), moments),
)
grants = st.builds(
    lambda issued_at, life, **fields: grant(
        issued_at=issued_at,
        last_rotation_at=issued_at,
        expires_at=None if life is None else issued_at + life,
        **fields,
    ),
    issued_at=times,
    life=lifetimes,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True),
    generation=st.integers(0, 10**6),
    failures=st.integers(0, 10**9),
    failure=st.one_of(st.none(), failures),
    doubt=st.one_of(st.none(), st.builds(doubt, moments)),
    demanded=st.integers(0, 10**9),
    replay=st.one_of(st.none(), st.just(0.0), st.floats(0.1, 3600)),
    max_age=st.one_of(st.none(), st.floats(1, DAY)),
    dead=st.booleans(),
)
options = st.fixed_dictionaries({"demanded": st.booleans(), "force": st.booleans(), "horizon": st.floats(0, 2 * HOUR)})


@given(grants, moments, options)
def test_a_decision_depends_only_on_its_arguments(grant: Grant, now: Moment, given: dict[str, Any]) -> None:
    """If it failed, cron and daemon would disagree about the same grant."""
    assert policy.decide(grant, now, **given) == policy.decide(grant, now, **given)


@given(grants, moments, options)
def test_a_wait_ends_in_the_future_and_within_its_limit(grant: Grant, now: Moment, given: dict[str, Any]) -> None:
    """If it failed, the daemon would loop without pause, or a changed clock would stop a grant for years."""
    decision = policy.decide(grant, now, **given)
    if isinstance(decision, Rotate) or decision.until is None:
        assert isinstance(decision, Rotate) or decision.reason == "reauthorization_required"
        return
    wait = decision.until - now.wall
    assert wait > -1e-3
    life = policy.expected_expiry(grant) - grant.issued_at
    # A day or the life, and the minute that a clock may be off.
    assert wait <= max(DAY, life) + 61


def test_the_published_retry_time_is_the_real_one() -> None:
    """If it failed, the token file would announce a retry that the doubt forbids."""
    assert policy.retry_at(DOUBTFUL) == NOON + HOUR
    assert policy.retry_at(SET_AHEAD) == NOON + DAY + HOUR
    assert policy.retry_at(REPLAYABLE) == NOON + 5
    assert policy.retry_at(FAILING) == NOON + 100
    assert policy.retry_at(DOUBT_WITHOUT_TOKEN) == NOON + 100
    assert policy.retry_at(DEAD) is None
    assert policy.retry_at(HEALTHY) is None


@pytest.mark.parametrize(("replay", "expected"), [(0.0, False), (30.0, True), (None, True)])
def test_a_replay_is_allowed_only_in_a_grace_period(replay: float | None, expected: bool) -> None:
    """If it failed, an exchange without a replay would stop after half of its time."""
    assert policy.replay_allowed(grant(replay=replay), at()) is expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (at(NOON - DAY, boot="boot-2"), True),
        (at(NOON - DAY, boot=""), True),
        (at(NOON - 30, boot="boot-2"), False),
        (at(NOON + DAY, boot="boot-2"), False),
        (at(NOON - DAY, lasted=60), False),
        (at(NOON, lasted=-3600), True),
    ],
)
def test_a_doubt_in_the_future_is_recognised(now: Moment, expected: bool) -> None:
    """If it failed, a machine whose clock starts in 1970 would wait for years, or send a used token too early (I1)."""
    assert policy.doubt_in_future(DOUBTFUL, now) is expected
    assert not policy.doubt_in_future(HEALTHY, now)


@given(grants, st.floats(0, TEN_YEARS), st.booleans())
def test_after_a_rotation_nothing_is_due_for_a_second(grant: Grant, life: float, demanded: bool) -> None:
    """If it failed, a very short lifetime would cause rotations without pause, which use up a grant."""
    fresh = policy_grant_after_rotation(grant, life)
    for later in (0.0, 0.5, 0.99):
        now = at(fresh.issued_at + later)
        assert isinstance(policy.decide(fresh, now, demanded=demanded, horizon=HOUR), Wait)


@given(grants, lifetimes)
def test_a_healthy_grant_is_due_before_its_token_expires(grant: Grant, life: float | None) -> None:
    """If it failed, agents would read an expired token although nothing failed."""
    assume(life is None or life >= 2)
    fresh = policy_grant_after_rotation(grant, life)
    due = policy.due_at(fresh)
    assert fresh.issued_at + 1 <= due <= max(policy.expected_expiry(fresh), fresh.issued_at + 1)
    assert due <= fresh.issued_at + DAY
    share = min(0.75 * (policy.expected_expiry(fresh) - fresh.issued_at), DAY)
    most = min(60.0, 0.05 * (policy.expected_expiry(fresh) - fresh.issued_at))
    assert due >= fresh.issued_at + share - most - 1e-3, "due earlier than the jitter allows"
    assert policy.decide(fresh, at(due)) == Rotate("due")


@given(grants, st.integers(-5, 10**12))
def test_a_backoff_stays_within_its_limits(grant: Grant, failures: int) -> None:
    """If it failed, refresher would retry too often during an outage, or never again."""
    assert 5 <= policy.backoff(grant, failures) <= 450


def policy_grant_after_rotation(before: Grant, life: float | None) -> Grant:
    """Return ``before`` after a rotation."""
    return grant(
        name=before.name,
        generation=before.generation + 1,
        issued_at=before.issued_at,
        last_rotation_at=before.issued_at,
        expires_at=None if life is None else before.issued_at + life,
        demanded=before.demanded,
        max_age=before.max_age,
    )


@pytest.mark.parametrize(
    ("changes", "failures", "waits"),
    [
        ({}, 1, 1.0),
        ({}, 2, 3.0),
        ({}, 3, 9.0),
        ({}, 9, 60.0),
        ({"busy_until": NOON + 3030}, 1, 60.0),
        ({"outcome": "client_rejected"}, 1, 60.0),
    ],
)
@pytest.mark.parametrize("set_by", [0.0, 1800.0, -1800.0])
def test_a_demand_shortens_the_first_waits_after_a_failure(
    changes: dict[str, Any], failures: int, waits: float, set_by: float
) -> None:
    """If it failed, after one 503 all calls with an expired token would fail for 15 s, longer than agents wait."""
    began = at(NOON + 3000)
    failed = failure(
        **({"outcome": "transient", "at": NOON + 3000, "retry_at": NOON + 3060, "moment": began} | changes)
    )
    waiting = grant(failure=failed, failures=failures)

    def after(seconds: float, before: Grant = waiting, *, demanded: bool = True) -> type:
        moment = at(NOON + 3000 + seconds + set_by, lasted=3000 + seconds)
        return type(policy.decide(before, moment, demanded=demanded))

    assert after(waits - 0.1) is Wait
    assert after(waits + 0.1) is Rotate
    assert after(59.9, demanded=False) is Wait
    assert after(59.9, msgspec.structs.replace(waiting, refusals=1)) is Wait, "a refusal shortens the wait"


@pytest.mark.parametrize(
    ("client", "code", "refusals", "needed"),
    [
        ("registered", "invalid_client", 1, False),
        ("registered", "invalid_client", 2, True),
        ("registered", "unauthorized_client", 2, False),
        ("given", "invalid_client", 2, False),
        ("given", "invalid_client", 10, True),
    ],
)
def test_a_forgotten_registration_needs_a_person_soon(
    client: Literal["given", "registered"], code: str, refusals: int, needed: bool
) -> None:
    """If it failed, a login whose registration the server forgot would fail for an hour before a person learns of it."""
    rejected = failure(outcome="client_rejected", code=code)
    there = grant(login=Login(client=client), refusals=refusals, failures=refusals, failure=rejected)
    assert policy.needs_person(there) is needed
    assert there.access_token is not None
    said = Result.from_decision(there, Wait("client_rejected", NOON + 100), adopted=False).detail
    assert ("refresher login linear" in said) is (needed or (client, code) == ("registered", "invalid_client"))
