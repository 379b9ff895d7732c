"""How long a refresh token and a login last: when a rotation is due because of it, and when a person is warned."""

from typing import Any

import msgspec
import pytest

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy, refresh_life
from refresher.grants.outcome import NotSent, TokensIssued, Transient
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Grant, Login
from refresher.grants.refresh_life import EndWarning
from refresher.grants.transition import apply
from refresher.login.token_request import new_grant
from tests.support.samples import NOON, REFRESH, at, doubt, failure, grant

MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
KEYCLOAK = {"issued": at(), "expires_at": NOON + 8 * HOUR, "refresh_token_expires_at": NOON + 30 * MINUTE}
"""The answer of the report: an access token for eight hours, a refresh token for half an hour."""


def _answered(
    before: Grant,
    life: float | None,
    sent: Moment | None = None,
    *,
    refresh: Secret | None = None,
    access: float = HOUR,
) -> Grant:
    """Return ``before`` after an answer with a refresh token for ``life`` seconds."""
    tokens = TokensIssued(
        access_token=Secret("new-access"),
        token_type="Bearer",
        expires_in=access,
        expires_at=None,
        refresh_token=refresh,
        scope=None,
        refresh_token_expires_in=life,
    )
    moment = sent or at(NOON + 10 * MINUTE)
    return apply(before, tokens, sent=moment, now=moment, demanded=False, generation=before.generation + 1)


NEW = Secret("new-refresh")


@pytest.mark.parametrize(
    ("known", "life", "refresh", "ends", "login_ends"),
    [
        pytest.param(None, 1800.0, NEW, 2400.0, None, id="announced for the first time"),
        pytest.param(None, None, NEW, None, None, id="nothing is announced"),
        pytest.param(1800.0, 1800.0, NEW, 2400.0, None, id="the life starts anew"),
        pytest.param(1800.0, 1200.0, NEW, 1800.0, 1800.0, id="the same end: that of the session"),
        pytest.param(1800.0, 1200.0, None, 1800.0, 1800.0, id="the same end of the same refresh token"),
        pytest.param(1800.0, 1340.0, NEW, 1940.0, 1940.0, id="the end moved by less than a quarter of the time"),
        pytest.param(1800.0, 1360.0, NEW, 1960.0, None, id="the end moved by more: in doubt, it started anew"),
        pytest.param(1800.0, 600.0, NEW, 1200.0, None, id="an earlier end: another life"),
        pytest.param(1800.0, None, NEW, None, None, id="a new refresh token without an end"),
        pytest.param(1800.0, None, None, 1800.0, 1800.0, id="the same refresh token, nothing announced"),
        pytest.param(1800.0, None, REFRESH, 1800.0, 1800.0, id="the same refresh token again, nothing announced"),
        pytest.param(300.0, None, None, None, None, id="it was accepted after its end: that end was wrong"),
    ],
)
def test_the_ends_after_an_answer(
    known: float | None, life: float | None, refresh: Secret | None, ends: float | None, login_ends: float | None
) -> None:
    """If it failed, refresher would believe in a wrong end, and rotate too late, or warn without a reason."""
    before = grant(issued=at(), refresh_token_expires_at=None if known is None else NOON + known)
    after = _answered(before, life, refresh=refresh)
    assert after.refresh_token_expires_at == (None if ends is None else NOON + ends)
    assert after.login_ends_at == (None if login_ends is None else NOON + login_ends)


def test_a_refresh_token_that_is_not_taken_over_ends_nothing() -> None:
    """If it failed, the end of a spent refresh token that a server repeats would count for the one in use."""
    spent = Secret("spent-before")
    before = grant(issued=at(), refresh_token_expires_at=NOON + HOUR, spent=(spent.fingerprint(),))
    after = _answered(before, 60.0, refresh=spent)
    assert after.refresh_token == REFRESH
    assert after.refresh_token_expires_at == NOON + HOUR


def test_the_same_answer_soon_after_is_no_end_of_the_login() -> None:
    """If it failed, a replay in a grace period would look like the end of a session, and a person would be warned."""
    before = grant(issued=at(), refresh_token_expires_at=NOON + HOUR)
    assert _answered(before, HOUR - 20, at(NOON + 20), refresh=NEW).login_ends_at is None
    assert _answered(before, HOUR - 40, at(NOON + 40), refresh=NEW).login_ends_at == NOON + HOUR


@pytest.mark.parametrize("set_by", [-DAY, -HOUR, HOUR, 30 * DAY])
def test_a_clock_that_is_set_changes_no_end(set_by: float) -> None:
    """If it failed, a wrong clock would make a session look endless, or an endless login look like one that ends."""
    before = grant(issued=at(), refresh_token_expires_at=NOON + HOUR)
    sent = at(NOON + 600 + set_by, lasted=600)
    renewed, kept = _answered(before, HOUR, sent, refresh=NEW), _answered(before, None, sent)
    assert (renewed.refresh_token_expires_at, renewed.login_ends_at) == (sent.wall + HOUR, None)
    assert kept.refresh_token_expires_at == kept.login_ends_at == sent.wall + HOUR - 600


@pytest.mark.parametrize(
    ("changes", "earliest", "latest"),
    [
        pytest.param({}, 1260, 1350, id="known lifetime of the access token"),
        pytest.param({"expires_at": None}, 1260, 1350, id="unknown lifetime of the access token"),
        pytest.param({"refuses_early": True}, 1260, 1350, id="a server that refuses an early refresh"),
        pytest.param({"token_endpoint": "https://github.com/login/oauth/access_token"}, 1260, 1350, id="a server that revokes the access token"),
        pytest.param({"not_before": NOON + 1500}, 1500, 1500, id="not usable before"),
        pytest.param({"refresh_token_expires_at": NOON + 8}, 5.6, 6, id="eight seconds"),
        pytest.param({"refresh_token_expires_at": NOON + 1}, 1, 1, id="not more often than once a second"),
        pytest.param({"refresh_token_expires_at": NOON - 1}, 6 * HOUR - 60, 6 * HOUR, id="an end before the answer"),
        pytest.param({"refresh_token_expires_at": NOON + 90 * DAY}, 6 * HOUR - 60, 6 * HOUR, id="later than the access token"),
        pytest.param({"login_ends_at": NOON + 1800}, 1260, 1350, id="the end of the login: once more before it"),
        pytest.param({"refresh_token_expires_at": NOON + 59, "login_ends_at": NOON + 59}, 6 * HOUR - 60, 6 * HOUR, id="the last minute of a login"),
        pytest.param({"refresh_token": None}, 6 * HOUR - 60, 6 * HOUR, id="client credentials"),
    ],
)  # fmt: skip
def test_a_rotation_is_due_before_the_refresh_token_ends(
    changes: dict[str, Any], earliest: float, latest: float
) -> None:
    """If it failed, a login would be lost because its refresh token ends before the access token, or be rotated all day."""
    due = policy.due_at(grant(**(KEYCLOAK | changes))) - NOON
    assert earliest <= due <= latest


def test_the_end_of_a_session_causes_few_rotations() -> None:
    """If it failed, the last hours of a session would bring a rotation each second."""
    now, session = at(), NOON + 10 * HOUR
    there = grant(**(KEYCLOAK | {"refresh_token_expires_at": session}))
    rotations = 0
    while (due := policy.due_at(there)) < session:
        now = at(due)
        there = _answered(there, session - due, now, refresh=Secret(f"refresh-{rotations}"), access=8 * HOUR)
        rotations += 1
    assert 3 <= rotations <= 8
    assert session - now.wall < 4 * MINUTE
    assert there.login_ends_at == pytest.approx(session)


@pytest.mark.parametrize("set_by", [-DAY, -20 * MINUTE, -50.0, 0.0])
def test_a_clock_that_is_set_back_delays_no_rotation_beyond_the_end(set_by: float) -> None:
    """If it failed, a clock that is set back by 20 minutes would cost a login whose refresh token lasts half an hour."""
    there = grant(**KEYCLOAK)
    late = at(NOON + 25 * MINUTE + set_by, lasted=25 * MINUTE)
    assert isinstance(policy.decide(there, late), Rotate)
    assert isinstance(policy.decide(grant(**(KEYCLOAK | {"refuses_early": True})), late), Rotate)
    early = at(NOON + 21 * MINUTE + min(set_by, -50.0), lasted=21 * MINUTE)
    decision = policy.decide(there, early)
    assert set_by == -DAY or (isinstance(decision, Wait) and decision.until is not None)
    if isinstance(decision, Wait) and decision.until is not None:
        assert 0 <= decision.until - early.wall <= 90


@pytest.mark.parametrize(
    ("left", "longest"), [(8 * HOUR, 450.0), (200.0, 100.0), (6.0, 3.0), (0.5, 1.0), (-5.0, 450.0)]
)
@pytest.mark.parametrize("failed", [3, 9])
def test_no_backoff_lasts_beyond_the_end(left: float, longest: float, failed: int) -> None:
    """If it failed, an outage of a minute would cost a login, because the next attempt comes after its end."""
    there = grant(issued=at(), failures=failed, refresh_token_expires_at=NOON + 1000 + left)
    after = apply(there, NotSent(description="away"), sent=None, now=at(NOON + 1000), demanded=False, generation=4)
    assert after.failure is not None
    assert after.failure.retry_at is not None
    wait = after.failure.retry_at - (NOON + 1000)
    assert min(longest, 1.0) <= wait <= longest
    assert wait < left or left < 1.0


def test_a_server_that_asks_for_time_gets_it() -> None:
    """If it failed, a server that is busy would get requests that it asked not to send."""
    there = grant(issued=at(), refresh_token_expires_at=NOON + 200)
    busy = Transient(description="busy", retry_after=600.0)
    after = apply(there, busy, sent=at(), now=at(), demanded=False, generation=4)
    assert after.failure is not None
    assert after.failure.retry_at == NOON + 600


def test_an_ending_refresh_token_ends_no_doubt() -> None:
    """If it failed, a refresh token in doubt would be sent again, and end a valid access token (I1)."""
    doubtful = grant(**KEYCLOAK, doubt=doubt(), failure=failure(outcome="in_doubt"), failures=1)
    for passed in (200.0, 1400.0, 1900.0):
        assert policy.decide(doubtful, at(NOON + passed)) == Wait("in_doubt", NOON + 8 * HOUR)


def _ending(left: float, *, lasted: float = 30 * DAY, **changes: Any) -> Grant:
    """Return a grant whose login ends ``left`` seconds after noon, after it lasted that long."""
    fields = {"issued": at(), "login_ends_at": NOON + left, "authorized_at": NOON + left - lasted}
    return grant(**(fields | changes))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param(grant(issued=at()), None, id="no end is known"),
        pytest.param(_ending(8 * DAY), EndWarning(DAY, 7 * DAY), id="eight days ahead"),
        pytest.param(_ending(7 * DAY), EndWarning(0.0, 7 * DAY), id="seven days ahead"),
        pytest.param(_ending(3 * DAY), EndWarning(0.0, 7 * DAY), id="the warning of seven days, late"),
        pytest.param(_ending(3 * DAY, end_warned=7 * DAY), EndWarning(2 * DAY, DAY), id="seven days were given"),
        pytest.param(_ending(20 * HOUR), EndWarning(0.0, DAY), id="two missed: only the last"),
        pytest.param(_ending(20 * HOUR, end_warned=DAY), EndWarning(19 * HOUR, HOUR), id="one day was given"),
        pytest.param(_ending(20 * MINUTE), EndWarning(0.0, HOUR), id="all missed: only the last"),
        pytest.param(_ending(20 * MINUTE, end_warned=HOUR), None, id="all were given"),
        pytest.param(_ending(-MINUTE), None, id="the login has ended"),
        pytest.param(_ending(10 * HOUR, lasted=10 * HOUR), EndWarning(9 * HOUR, HOUR), id="a login of ten hours"),
        pytest.param(_ending(10 * MINUTE, lasted=30 * MINUTE), None, id="a login of half an hour"),
        pytest.param(_ending(DAY, dead=True), None, id="the server has ended it already"),
    ],
)
def test_each_warning_is_due_once(there: Grant, expected: EndWarning | None) -> None:
    """If it failed, a person would get no warning of the end of a login, or the same one each minute."""
    assert refresh_life.next_warning(there, at()) == expected


def test_a_later_end_has_its_own_warnings() -> None:
    """If it failed, a session that an administrator prolonged would end without another warning."""
    before = _ending(HOUR / 2, end_warned=HOUR, refresh_token_expires_at=NOON + HOUR / 2)
    same = _answered(before, 1200.0, refresh=NEW)
    assert (same.login_ends_at, same.end_warned) == (NOON + HOUR / 2, HOUR)
    renewed = _answered(same, HOUR, at(NOON + 1200), refresh=Secret("another"))
    assert renewed.login_ends_at is None
    later = _answered(renewed, 2 * HOUR + 1, at(NOON + 1200 + 2 * HOUR), refresh=Secret("a third"))
    ended = _answered(later, HOUR + 1, at(NOON + 1200 + 3 * HOUR), refresh=Secret("a fourth"))
    assert ended.login_ends_at is not None
    assert ended.end_warned is None


def test_a_login_knows_the_end_of_its_refresh_token() -> None:
    """If it failed, a login at Keycloak would be lost before its first rotation."""
    tokens = TokensIssued(
        access_token=Secret("access"),
        token_type="Bearer",
        expires_in=28800.0,
        expires_at=None,
        refresh_token=NEW,
        scope=None,
        refresh_token_expires_in=1800.0,
    )
    login = new_grant(grant(), tokens, at())
    assert (login.refresh_token_expires_at, login.login_ends_at) == (NOON + 1800, None)
    assert policy.due_at(login) <= NOON + 1350
    without = new_grant(grant(), msgspec.structs.replace(tokens, refresh_token=None), at())
    assert without.refresh_token_expires_at is None


def test_a_profile_says_what_an_answer_does_not() -> None:
    """If it failed, the yearly end of a login at Atlassian would come without a warning."""
    atlassian = grant(
        token_endpoint="https://auth.atlassian.com/oauth/token",
        issued=at(),
        authorized_at=NOON,
        login=Login(client="given"),
    )
    login = refresh_life.after_login(atlassian, None, at())
    assert (login.refresh_token_expires_at, login.login_ends_at) == (NOON + 90 * DAY, NOON + 365 * DAY)
    rotated = _answered(login, None, refresh=NEW)
    assert rotated.refresh_token_expires_at == NOON + 600 + 90 * DAY
    assert rotated.login_ends_at == NOON + 365 * DAY
    announced = refresh_life.after_login(atlassian, 60.0, at())
    assert announced.refresh_token_expires_at == NOON + 60
    credentials = msgspec.structs.replace(atlassian, refresh_token=None)
    assert refresh_life.after_login(credentials, 60.0, at()) == credentials
