"""How a server behaves: by what was seen, by what its grant says, by what is known of its kind."""

import re
from typing import Any

import pytest

from refresher.common.clocks import Moment
from refresher.grants import policy, server_behavior
from refresher.grants.outcome import TooEarly
from refresher.grants.policy import Rest, Rotate
from refresher.grants.providers import PROFILES, UNKNOWN, Profile, profile_of
from refresher.grants.transition import after
from refresher.operations import explanation
from refresher.storage.publishing import state_of
from tests.support.samples import NOON, at, doubt, failure, grant

DAY = 86400.0


def entra(**changes: Any) -> Any:
    """Return a grant at Entra that says nothing of its server's ways."""
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
    """If it failed, a claim would stand there that nobody can check, or that is only decoration."""
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
        ("https://myshopify.com/token", None, "unknown"),
        ("https://evil-slack.com/token", None, "unknown"),
        ("https://slack.com.evil.example/token", None, "unknown"),
        ("https://as.example/token?x=https://slack.com", None, "unknown"),
    ],
)
def test_a_profile_is_found_by_the_host_alone(token_endpoint: str, issuer: str | None, name: str) -> None:
    """If it failed, another server would be given a grace that it does not have."""
    assert profile_of(token_endpoint, issuer).name == name


def test_what_was_seen_beats_what_the_grant_says_and_that_beats_what_is_known() -> None:
    """If it failed, neither a person nor experience could correct a wrong profile."""
    assert server_behavior.replay(entra()) is None
    assert server_behavior.replay(entra(replay=0.0)) == 0.0
    assert server_behavior.replay(entra(replay=30.0)) == 30.0
    assert server_behavior.replay(grant()) == 0.0
    assert not server_behavior.sends_resource(entra())
    assert server_behavior.sends_resource(entra(send_resource=True))
    assert not server_behavior.sends_resource(entra(send_resource=True, resource_refused=True))
    assert server_behavior.sends_resource(grant(resource="urn:x", send_resource=None))
    assert not server_behavior.sends_resource(grant(resource="urn:x", send_resource=False))
    assert not server_behavior.sends_resource(grant(resource=None, send_resource=None))
    assert server_behavior.scope(entra()) == "read offline_access"
    assert (
        server_behavior.scope(entra(scope="read", asked_scope="read offline_access write"))
        == "read offline_access write"
    )
    assert server_behavior.scope(grant()) is None
    assert server_behavior.scope(grant(refresh_token=None, scope="", asked_scope="read")) == "read"
    assert server_behavior.scope(entra(scope=None)) is None


def test_a_token_of_unknown_life_lives_as_long_as_is_known_of_its_server() -> None:
    """If it failed, a token whose server tells no lifetime would be replaced far too often, or too late."""
    github = {"token_endpoint": "https://github.com/login/oauth/access_token", "expires_at": None}
    assert policy.end_of_life(grant(**github)) == NOON + 8 * 3600
    assert policy.end_of_life(grant(**github, max_age=600.0)) == NOON + 600
    assert policy.end_of_life(grant(expires_at=None)) == NOON + policy.DEFAULT_MAX_AGE


def test_where_a_rotation_ends_the_token_in_use_it_comes_later() -> None:
    """If it failed, agents would be handed 401s more often than needed."""
    usual = policy.due_at(grant()) - NOON
    github = policy.due_at(grant(token_endpoint="https://github.com/login/oauth/access_token")) - NOON
    assert usual < 0.75 * 3600 + 1 < github < 3600


@pytest.mark.parametrize(
    "known", [{"refuses_early": True}, {"token_endpoint": "https://start.exactonline.nl/api/oauth2/token"}]
)
def test_where_an_early_refresh_is_refused_it_is_due_at_the_end(known: dict[str, Any]) -> None:
    """If it failed, each rotation would begin with a refusal, and some servers count those."""
    assert policy.due_at(grant(**known)) == NOON + 3600
    assert policy.decide(grant(**known), at(NOON + 3590), horizon=70.0) == Rest("not_due", NOON + 3600)


def test_a_refresh_token_that_says_when_it_may_be_used_is_not_used_before() -> None:
    """If it failed, rauthy would end all logins of the user for one early refresh."""
    held = grant(not_before=NOON + 3540)
    for asked in ({}, {"force": True}, {"demanded": True}, {"horizon": 7200.0}):
        assert policy.decide(held, at(NOON + 3000), **asked) == Rest("too_early", NOON + 3540), asked
    assert policy.decide(held, at(NOON + 3540)) == Rotate("due")
    assert policy.due_at(grant(not_before=NOON)) == policy.due_at(grant()), "one that has passed changes nothing"
    # By a clock that was set back it is not used early either.
    assert policy.decide(held, at(NOON - 120)) == Rest("too_early", NOON + 3540)
    # Nobody waits for a number beyond all reason.
    assert policy.decide(grant(not_before=NOON + 1e9), at(NOON + 3600)) == Rotate("due")


def test_no_clock_that_is_set_makes_a_refresh_token_usable() -> None:
    """If it failed, a clock set ahead would end all logins of a user at rauthy."""
    held = grant(not_before=NOON + 3540, issued=at())
    for asked in ({}, {"force": True}, {"demanded": True}):
        assert policy.decide(held, at(NOON + DAY, lasted=3000), **asked) == Rest("too_early", NOON + DAY + 540), asked
    assert policy.decide(held, at(NOON - 30, lasted=3540), force=True) == Rotate("forced")
    assert policy.decide(held, at(NOON + DAY, boot="boot-2")) == Rotate("due"), "another clock than the wall is meant"


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
def test_a_verdict_is_mistaken_only_while_the_token_lives(
    asked: Moment, changes: dict[str, Any], expected: bool
) -> None:
    """If it failed, a clock that was set would give a good grant up, or hide a dead one for as long as it is wrong."""
    assert policy.is_early(grant(**({"refuses_early": True, "issued": at()} | changes)), asked) is expected


def test_a_demand_that_a_verdict_bears_out_calls_for_a_person_only_in_the_end() -> None:
    """If it failed, one false demand would end a good grant, or a revoked one be hidden for as long as its token lives."""
    refused, now = grant(refuses_early=True, issued=at(), expires_at=NOON + DAY), at(NOON + 60)
    early = TooEarly(code="invalid_grant", description="400 invalid_grant", refusal=True)
    for times in range(1, 11):
        refused = after(refused, early, first_sent=now, last_sent=now, now=now, demanded=True, generation=4)
        assert (refused.dead, policy.needs_person(refused)) == (False, times == 10)
        assert state_of(refused) == ("failing" if times < 10 else "reauthorization_required")
        rest = policy.decide(refused, now, demanded=True)
        assert rest == Rest("too_early", NOON + DAY)
        result = explanation.rested(refused, rest)
        assert (result.outcome == "reauthorization_required", "refresher login" in result.detail) == (
            times == 10,
            times == 10,
        )
        now = at(now.wall + policy.backoff(refused, times))
        assert policy.decide(refused, now, demanded=True) == Rotate("demanded"), "nobody asks any more"
    assert now.wall < NOON + 3600, "a person hears of it too late"
    assert policy.decide(refused, at(NOON + DAY)) == Rotate("retry"), "it does not mend itself when the token has ended"


def test_client_credentials_are_never_in_doubt() -> None:
    """If it failed, a lost answer would hold up a client that has nothing to lose."""
    assert policy.replay_open(grant(refresh_token=None, doubt=doubt()), at(NOON + 9999))


def test_only_what_is_refused_again_and_again_needs_a_person() -> None:
    """If it failed, one confused answer would call for a person, or a hundred would not."""
    assert not policy.needs_person(grant(refusals=9, failure=failure(outcome="client_rejected")))
    refused = grant(refusals=10, failure=failure(outcome="client_rejected"))
    assert policy.needs_person(refused)
    assert policy.decide(refused, at(NOON + 101)) == Rotate("retry"), "it is not tried any more"
