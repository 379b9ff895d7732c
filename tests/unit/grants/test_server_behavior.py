"""The behavior of a server: observations come before settings, and settings before profiles."""

import re
from typing import Any

import pytest

from refresher.common.clocks import Moment
from refresher.grants import policy, server_behavior
from refresher.grants.outcome import TooEarly
from refresher.grants.policy import Rotate, Wait
from refresher.grants.providers import PROFILES, UNKNOWN, Profile, find_profile
from refresher.grants.token_file import state_of
from refresher.grants.transition import apply
from refresher.operations.result import Result
from tests.support.samples import NOON, at, doubt, failure, grant

DAY = 86400.0


def entra(**changes: Any) -> Any:
    """Return a grant at Entra without settings for the behavior of its server."""
    import msgspec

    fields = {
        "token_endpoint": "https://login.microsoftonline.com/common/oauth2/v2.0/token",
        "replay": msgspec.UNSET,
        "resource": "https://mcp.example/mcp",
        "send_resource": None,
    }
    return grant(**(fields | changes))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_each_profile_has_a_source_and_changes_something(profile: Profile) -> None:
    """If it failed, a profile would contain a claim without a source, or no effect."""
    assert re.search(r"[\w-]+\.\w+|#\d+|\w+/\w+", profile.source)
    assert profile._replace(name="", hosts=(), source="") != UNKNOWN._replace(name="", source="")
    assert profile.hosts
    for host in profile.hosts:
        assert host == host.lower()
        assert "/" not in host


@pytest.mark.parametrize(
    ("token_endpoint", "issuer", "name"),
    [
        ("https://login.microsoftonline.com/common/oauth2/v2.0/token", None, "Entra"),
        ("https://shop.myshopify.com/admin/oauth/access_token", None, "Shopify"),
        ("https://elsewhere.example/token", "https://accounts.google.com", "Google"),
        ("https://SLACK.com/api/oauth.v2.access", None, "Slack"),
        ("https://mcp.notion.com/token", None, "Notion MCP"),
        ("https://myshopify.com/token", None, "unknown"),
        ("https://evil-slack.com/token", None, "unknown"),
        ("https://slack.com.evil.example/token", None, "unknown"),
        ("https://as.example/token?x=https://slack.com", None, "unknown"),
    ],
)
def test_a_profile_is_found_by_the_host_only(token_endpoint: str, issuer: str | None, name: str) -> None:
    """If it failed, a server could get the grace period of another one."""
    assert find_profile(token_endpoint, issuer).name == name


@pytest.mark.parametrize(
    ("host", "unused", "login"),
    [
        ("auth.atlassian.com", 90, 365),
        ("github.com", 180, None),
        ("identity.xero.com", 30, None),
        ("platform.ringcentral.com", 7, None),
        ("start.exactonline.nl", 30, None),
        ("login.microsoftonline.com", None, None),
        ("api.hubapi.com", None, None),
        ("slack.com", None, None),
        ("as.example", None, None),
    ],
)
def test_a_profile_knows_when_refresh_tokens_and_logins_end(host: str, unused: int | None, login: int | None) -> None:
    """If it failed, a grant that nobody rotates for a while would end without a word."""
    there = grant(token_endpoint=f"https://{host}/token")
    assert server_behavior.refresh_token_lifetime(there) == (None if unused is None else unused * DAY)
    assert server_behavior.login_lifetime(there) == (None if login is None else login * DAY)


def test_observations_come_before_settings_and_settings_before_profiles() -> None:
    """If it failed, neither a setting nor an observation could correct a wrong profile."""
    assert server_behavior.grace_period(entra()) is None
    assert server_behavior.grace_period(entra(replay=0.0)) == 0.0
    assert server_behavior.grace_period(entra(replay=30.0)) == 30.0
    assert server_behavior.grace_period(grant()) == 0.0
    assert not server_behavior.sends_resource(entra())
    assert server_behavior.sends_resource(entra(send_resource=True))
    assert not server_behavior.sends_resource(entra(send_resource=True, resource_refused=True))
    assert server_behavior.sends_resource(grant(resource="urn:x", send_resource=None))
    assert not server_behavior.sends_resource(grant(resource="urn:x", send_resource=False))
    assert not server_behavior.sends_resource(grant(resource=None, send_resource=None))
    assert server_behavior.scope_to_send(entra()) == "read offline_access"
    assert (
        server_behavior.scope_to_send(entra(scope="read", asked_scope="read offline_access write"))
        == "read offline_access write"
    )
    assert server_behavior.scope_to_send(grant()) is None
    assert server_behavior.scope_to_send(grant(refresh_token=None, scope="", asked_scope="read")) == "read"
    assert server_behavior.scope_to_send(entra(scope=None)) is None


def test_an_unknown_lifetime_comes_from_the_profile() -> None:
    """If it failed, a token without expires_in would be replaced too often or too late."""
    github = {"token_endpoint": "https://github.com/login/oauth/access_token", "expires_at": None}
    assert policy.expected_expiry(grant(**github)) == NOON + 8 * 3600
    assert policy.expected_expiry(grant(**github, max_age=600.0)) == NOON + 600
    assert policy.expected_expiry(grant(expires_at=None)) == NOON + policy.DEFAULT_MAX_AGE


@pytest.mark.parametrize(
    "token_endpoint",
    [
        "https://github.com/login/oauth/access_token",
        "https://mcp.notion.com/token",
        "https://platform.ringcentral.com/restapi/oauth/token",
        "https://api.wise.com/oauth/token",
    ],
)
def test_a_rotation_that_revokes_the_token_in_use_comes_later(token_endpoint: str) -> None:
    """If it failed, agents would get a 401 more often than necessary."""
    usual = policy.due_at(grant()) - NOON
    later = policy.due_at(grant(token_endpoint=token_endpoint)) - NOON
    assert usual < 0.75 * 3600 + 1 < later < 3600


@pytest.mark.parametrize(
    "known", [{"refuses_early": True}, {"token_endpoint": "https://start.exactonline.nl/api/oauth2/token"}]
)
def test_a_server_that_refuses_early_gets_a_request_at_the_expiry(known: dict[str, Any]) -> None:
    """If it failed, every rotation would start with a refusal, and some servers count refusals."""
    assert policy.due_at(grant(**known)) == NOON + 3600
    assert policy.decide(grant(**known), at(NOON + 3590), horizon=70.0) == Wait("not_due", NOON + 3600)


def test_a_refresh_token_is_not_used_before_its_nbf() -> None:
    """If it failed, rauthy would end all logins of the user after one early refresh."""
    held = grant(not_before=NOON + 3540)
    for asked in ({}, {"force": True}, {"demanded": True}, {"horizon": 7200.0}):
        assert policy.decide(held, at(NOON + 3000), **asked) == Wait("too_early", NOON + 3540), asked
    assert policy.decide(held, at(NOON + 3540)) == Rotate("due")
    assert policy.due_at(grant(not_before=NOON)) == policy.due_at(grant()), "an nbf in the past changes the due time"
    # By a clock that was set back it is not used early either.
    assert policy.decide(held, at(NOON - 120)) == Wait("too_early", NOON + 3540)
    # A time far in the future is ignored.
    assert policy.decide(grant(not_before=NOON + 1e9), at(NOON + 3600)) == Rotate("due")


def test_a_changed_clock_does_not_make_a_refresh_token_usable() -> None:
    """If it failed, rauthy would end all logins of a user after a clock was set ahead."""
    held = grant(not_before=NOON + 3540, issued=at())
    for asked in ({}, {"force": True}, {"demanded": True}):
        assert policy.decide(held, at(NOON + DAY, lasted=3000), **asked) == Wait("too_early", NOON + DAY + 540), asked
    assert policy.decide(held, at(NOON - 30, lasted=3540), force=True) == Rotate("forced")
    assert policy.decide(held, at(NOON + DAY, boot="boot-2")) == Rotate("due"), (
        "in another boot only the wall clock counts"
    )


WAITED_A_LIFE = failure(outcome="too_early", moment=at(NOON - DAY, lasted=-3600, boot="boot-2"))


@pytest.mark.parametrize(
    ("asked", "changes", "expected"),
    [
        (at(NOON + 3000), {}, True),
        (at(NOON + 3659), {}, True),
        (at(NOON + 3661), {}, False),
        (at(NOON + DAY, lasted=3000), {}, True),
        (at(NOON - DAY, lasted=3661), {}, False),
        (at(NOON + 3661), {"issued": None}, False),
        (at(NOON - DAY, boot="boot-2"), {}, True),
        (at(NOON - DAY, lasted=-1, boot="boot-2"), {"failure": WAITED_A_LIFE}, True),
        (at(NOON - DAY, lasted=0, boot="boot-2"), {"failure": WAITED_A_LIFE}, False),
        (at(NOON - DAY, lasted=0, boot="boot-3"), {"failure": WAITED_A_LIFE}, True),
        (at(NOON + 3000), {"refuses_early": False}, False),
    ],
)
def test_a_rejection_means_too_early_only_while_the_token_is_valid(
    asked: Moment, changes: dict[str, Any], expected: bool
) -> None:
    """If it failed, a changed clock would end a valid grant, or hide a rejected one."""
    assert policy.may_be_too_early(grant(**({"refuses_early": True, "issued": at()} | changes)), asked) is expected


def test_rejections_of_a_demanded_refresh_need_a_person_after_ten() -> None:
    """If it failed, one false demand would end a valid grant, or a revoked grant would stay hidden until its token expires."""
    refused, now = grant(refuses_early=True, issued=at(), expires_at=NOON + DAY), at(NOON + 60)
    early = TooEarly(code="invalid_grant", description="400 invalid_grant", refusal=True)
    for times in range(1, 11):
        refused = apply(refused, early, sent=now, now=now, demanded=True, generation=4)
        assert (refused.dead, policy.needs_person(refused)) == (False, times == 10)
        assert state_of(refused) == ("failing" if times < 10 else "reauthorization_required")
        rest = policy.decide(refused, now, demanded=True)
        assert rest == Wait("too_early", NOON + DAY)
        result = Result.from_decision(refused, rest)
        assert (result.outcome == "reauthorization_required", "refresher login" in result.detail) == (
            times == 10,
            times == 10,
        )
        now = at(now.wall + policy.backoff(refused, times))
        assert policy.decide(refused, now, demanded=True) == Rotate("demanded"), "it is not retried"
    assert now.wall < NOON + 3600, "a person is needed too late"
    assert policy.decide(refused, at(NOON + DAY)) == Rotate("retry"), "it is not retried after the expiry"


def test_client_credentials_are_never_in_doubt() -> None:
    """If it failed, a lost answer would delay a client that has no refresh token to lose."""
    assert policy.replay_allowed(grant(refresh_token=None, doubt=doubt()), at(NOON + 9999))


def test_a_grant_needs_a_person_after_ten_refusals() -> None:
    """If it failed, one wrong answer would need a person, or a hundred would not."""
    assert not policy.needs_person(grant(refusals=9, failure=failure(outcome="client_rejected")))
    refused = grant(refusals=10, failure=failure(outcome="client_rejected"))
    assert policy.needs_person(refused)
    assert policy.decide(refused, at(NOON + 101)) == Rotate("retry"), "it is not retried"
