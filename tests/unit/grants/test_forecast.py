"""What is known to end, who says so, and which end comes first for a person."""

from typing import Any

import msgspec
import pytest

from refresher.grants import refresh_life
from refresher.grants.forecast import End, ends_of, first_hard_end
from refresher.grants.record import Grant, Login
from refresher.grants.refresh_life import EndWarning
from tests.support.samples import NOON, at, grant

HOUR = 3600.0
DAY = 86400.0
ATLASSIAN = {"token_endpoint": "https://auth.atlassian.com/oauth/token", "issued": at(), "authorized_at": NOON}


@pytest.mark.parametrize(
    ("fields", "certificate", "expected"),
    [
        pytest.param({}, None, [], id="nothing is known"),
        pytest.param(
            {"refresh_token_expires_at": NOON + DAY}, None, [End("refresh_token", NOON + DAY, "server")], id="announced"
        ),
        pytest.param(
            {"refresh_token_expires_at": NOON + 2 * DAY, "login_ends_at": NOON + DAY},
            NOON + HOUR,
            [
                End("certificate", NOON + HOUR, "certificate"),
                End("login", NOON + DAY, "server"),
                End("refresh_token", NOON + 2 * DAY, "server"),
            ],
            id="sorted by time",
        ),
        pytest.param(
            ATLASSIAN | {"login": Login(client="given"), "refresh_token_expires_at": NOON + 90 * DAY, "login_ends_at": NOON + 365 * DAY},
            None,
            [End("refresh_token", NOON + 90 * DAY, "profile"), End("login", NOON + 365 * DAY, "profile")],
            id="by the profile",
        ),
        pytest.param(
            ATLASSIAN | {"refresh_token_expires_at": NOON + 80 * DAY, "login_ends_at": NOON + 300 * DAY},
            None,
            [End("refresh_token", NOON + 80 * DAY, "server"), End("login", NOON + 300 * DAY, "server")],
            id="a server with a profile that says something else",
        ),
        pytest.param(
            {"login": Login(client="registered", client_expires_at=NOON + DAY)},
            None,
            [End("client_secret", NOON + DAY, "server")],
            id="the client",
        ),
        pytest.param(
            {"refresh_token": None, "refresh_token_expires_at": NOON + DAY}, None, [], id="there is no refresh token"
        ),
    ],
)  # fmt: skip
def test_the_ends_of_a_grant(fields: dict[str, Any], certificate: float | None, expected: list[End]) -> None:
    """If it failed, a person would see no end, a wrong one, or a guess that looks like the word of the server."""
    assert ends_of(grant(**fields), certificate) == expected


def test_a_refresh_token_is_no_end_for_a_person() -> None:
    """If it failed, an alarm would go off for a refresh token that the next rotation replaces."""
    soft, hard = End("refresh_token", NOON, "server"), End("certificate", NOON + HOUR, "certificate")
    assert first_hard_end([soft]) is None
    assert first_hard_end([soft, hard]) == hard


def _expiring(left: float, **changes: Any) -> Grant:
    """Return a grant whose registered client expires ``left`` seconds after noon, after a month."""
    login = Login(client="registered", client_expires_at=NOON + left)
    return grant(**({"issued": at(), "authorized_at": NOON + left - 30 * DAY, "login": login} | changes))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param(_expiring(3 * DAY), EndWarning(0.0, 7 * DAY), id="seven days ahead"),
        pytest.param(_expiring(3 * DAY, end_warned=7 * DAY), EndWarning(2 * DAY, DAY), id="that was given"),
        pytest.param(_expiring(3 * DAY, login_ends_at=NOON + HOUR), EndWarning(0.0, HOUR), id="the login ends before"),
        pytest.param(
            _expiring(HOUR, login_ends_at=NOON + 3 * DAY), EndWarning(0.0, HOUR), id="the login ends after it"
        ),
        pytest.param(_expiring(-HOUR, login_ends_at=NOON + 3 * DAY), EndWarning(0.0, 7 * DAY), id="it ended before"),
        pytest.param(_expiring(-HOUR), None, id="it has ended"),
        pytest.param(_expiring(HOUR, dead=True), None, id="a person must log in anyway"),
    ],
)
def test_the_end_of_a_client_has_the_warnings_of_a_login(there: Grant, expected: EndWarning | None) -> None:
    """If it failed, a login would stop because its client secret has expired, and nobody would be warned."""
    assert refresh_life.next_warning(there, at()) == expected


def test_a_rotation_does_not_repeat_the_warning_of_a_client() -> None:
    """If it failed, each rotation of a login that lasts longer than its client would give the same warning again."""
    warned = _expiring(HOUR / 2, end_warned=HOUR, login_ends_at=NOON + 3 * DAY)
    rotated = refresh_life.after_login(msgspec.structs.replace(warned, login_ends_at=None), 3 * DAY, at())
    assert rotated.end_warned == HOUR
    assert refresh_life.next_warning(rotated, at()) is None
