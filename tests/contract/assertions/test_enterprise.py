"""Access tokens from one login at the identity provider of a company (ID-JAG)."""

from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.grants import policy
from refresher.grants.policy import Rotate, Wait
from refresher.storage.store import Store
from tests.support.assertion_grants import change, exchanged, grant_of, import_grant, published_of, rotate_now
from tests.support.assertion_server import AssertionServer

DAY = 86400.0


def test_one_login_at_the_company_feeds_a_server(store: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, a person would have to log in at each MCP server, though the company has decided for all."""
    login = import_grant(store, "company", company.person())
    import_grant(store, "saas", saas.managed("company", scope="read"))
    rotate_now(store, "company")
    assert rotate_now(store, "saas").outcome == "rotated"
    identity = grant_of(store, "company").id_token
    assert login.id_token is not None
    assert identity is not None
    assert company.requests[-1] == {
        "client_id": "company",
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:id-jag",
        "audience": saas.url,
        "resource": saas.mcp,
        "scope": "read",
        "subject_token": identity.reveal(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
    }
    (request,) = saas.requests
    assertion = request.pop("assertion")
    assert company.own.claims(assertion, saas.url)["sub"] == "alice"
    assert request == {
        "client_id": "at-server",
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "resource": saas.mcp,
        "scope": "read",
    }
    assert assertion not in repr(msgspec.json.encode(grant_of(store, "saas"), enc_hook=lambda secret: secret.reveal()))
    assert published_of(store, "saas").state == "active"


@pytest.mark.parametrize("code", ["access_denied", "invalid_target", "unauthorized_client"])
def test_a_denial_is_shown_and_asked_again_after_a_day(
    files: Store, company: AssertionServer, saas: AssertionServer, code: str
) -> None:
    """If it failed, agents would ask a policy all the time, or never again, or a person would log in in vain."""
    import_grant(files, "company", company.person())
    import_grant(files, "saas", saas.managed("company"))
    assert rotate_now(files, "saas").outcome == "rotated"
    company.answer = lambda fields: (400, {"error": code}) if "audience" in fields else None
    result = rotate_now(files, "saas")
    assert result.outcome == "reauthorization_required"
    assert result.detail.startswith("blocked by an administrator: the identity provider company answered 400")
    assert "no login helps" in result.detail
    published = published_of(files, "saas")
    assert published.state == "reauthorization_required"
    assert published.error is not None
    assert published.error.code == "access_denied"
    assert published.access_token is not None, "the last token may still be valid (I5)"
    asked = len(company.asked("token_exchange"))
    assert rotate_now(files, "saas", force=False).outcome == "reauthorization_required"
    assert len(company.asked("token_exchange")) == asked
    grant, now = grant_of(files, "saas"), clocks.now()
    for passed, is_asked in ((0.0, False), (0.95 * DAY, False), (1.05 * DAY, True)):
        later = msgspec.structs.replace(
            now, wall=now.wall + passed, monotonic=now.monotonic + passed, boottime=now.boottime + passed
        )
        for demanded in (False, True):
            decision = policy.decide(grant, later, demanded=demanded)
            assert isinstance(decision, Rotate if is_asked else Wait)
    company.answer = lambda _: None
    assert rotate_now(files, "saas").outcome == "rotated"
    assert published_of(files, "saas").state == "active"
    assert not grant_of(files, "saas").refuses_early


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}, "another type of token"),
        ({"access_token": "opaque"}, "whose audience is not this server"),
        ({"audience": "https://other.example"}, "whose audience is not this server"),
        ({"audience": ["{saas}", "https://other.example"]}, "whose audience is not this server"),
    ],
    ids=["type", "opaque", "other", "two"],
)
def test_an_assertion_goes_only_to_the_server_that_is_its_audience(
    files: Store, company: AssertionServer, saas: AssertionServer, answer: dict[str, Any], words: str
) -> None:
    """If it failed, a server could use an assertion at another one, as the person (I8)."""
    audience = answer.get("audience", saas.url)
    if isinstance(audience, list):
        audience = [each.format(saas=saas.url) for each in audience]
    made = {
        "access_token": company.own.token(audience),
        "issued_token_type": "urn:ietf:params:oauth:token-type:id-jag",
        "token_type": "N_A",
    }
    company.answer = lambda fields: (200, made | answer) if "audience" in fields else None
    import_grant(files, "company", company.person())
    import_grant(files, "saas", saas.managed("company"))
    result = rotate_now(files, "saas")
    assert words in result.detail
    assert saas.requests == []


def test_a_provider_that_fails_is_not_asked_for_each_grant(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each grant of a company would ask its provider again and again while that is down."""
    import_grant(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    company.answer = lambda _: (503, {})
    for name in ("one", "two", "three"):
        import_grant(files, name, saas.managed("company"))
        result = rotate_now(files, name)
        assert result.outcome == "transient"
        assert "its source company has no valid id_token now" in result.detail
    assert len(company.requests) == 1


# IdentityAssertionGrantTokenExchangeProvider.java and StandardTokenExchangeProvider.java in keycloak/keycloak.
KEYCLOAK = [
    ("saas", 403, "access_denied", "Audience is not allowed for this client", "access_denied"),
    ("saas", 400, "unauthorized_client", "Client is not allowed to issue an Identity Assertion JWT", "access_denied"),
    ("saas", 400, "invalid_client", "Public clients are not allowed to issue an Identity Assertion JWT", None),
    ("saas", 400, "invalid_scope", "Scope not allowed for an Identity Assertion JWT: admin", None),
    ("saas", 400, "invalid_grant", "Invalid subject_token", None),
    ("api", 403, "access_denied", "Client is not within the token audience", "access_denied"),
    ("api", 400, "invalid_request", "Invalid token", None),
    ("api", 400, "invalid_client", "Public client is not allowed to exchange token", None),
    ("api", 400, "invalid_request", "Standard token exchange is not enabled for the requested client", None),
]


@pytest.mark.parametrize(("name", "status", "code", "text", "denied"), KEYCLOAK, ids=lambda value: str(value)[:40])
def test_what_keycloak_answers_is_a_denial_or_is_retried(
    files: Store,
    company: AssertionServer,
    saas: AssertionServer,
    name: str,
    status: int,
    code: str,
    text: str,
    denied: str | None,
) -> None:
    """If it failed, a grant would end although Keycloak accepts the next token, or ask a policy all the time."""
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    import_grant(files, "saas", saas.managed("company"))
    import_grant(files, "api", exchanged(company, subject_grant="company"))
    answer = status, {"error": code, "error_description": text}
    company.answer = lambda fields: answer if "subject_token" in fields else None
    result = rotate_now(files, name)
    assert text in result.detail
    grant = grant_of(files, name)
    assert grant.failure is not None
    if denied is None:
        assert (grant.dead, grant.failure.code, grant.failure.retry_at is not None) == (False, code, True)
    else:
        assert (grant.dead, grant.failure.code) == (True, denied)
        assert result.detail.startswith("blocked by an administrator")


def test_an_id_token_that_has_expired_makes_its_source_due(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a server would need a person as soon as the id_token of the company has expired."""
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    now = clocks.now().wall
    change(files, "company", last_rotation_at=now - 60, id_token_issued_at=now - 60, id_token_expires_at=now + 10)
    import_grant(files, "saas", saas.managed("company"))
    assert rotate_now(files, "saas").outcome == "rotated"
    assert grant_of(files, "company").generation == 2
    assert rotate_now(files, "saas").outcome == "rotated"
    assert grant_of(files, "company").generation == 2, "an id_token that is valid is used again"


def test_a_refresh_that_brings_no_id_token_names_the_login(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each attempt would rotate the login of the company in vain, and nobody would know what helps."""
    company.id_token_life = None
    import_grant(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    import_grant(files, "saas", saas.managed("company"))
    for _ in range(2):
        result = rotate_now(files, "saas")
        assert result.outcome == "reauthorization_required"
        assert "'refresher login company'" in result.detail
    assert grant_of(files, "company").generation == 1
    assert published_of(files, "saas").state == "reauthorization_required"


def test_one_login_brings_back_every_grant_that_needs_it(
    store: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a person would have to look for each grant that the end of one login has ended."""
    import_grant(store, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    import_grant(store, "saas", saas.managed("company"))
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    company.dead = True
    for name in ("saas", "api"):
        result = rotate_now(store, name, force=False)
        assert result.outcome == "reauthorization_required"
        assert "'refresher login company' brings back every grant that needs it" in result.detail
        published = published_of(store, name)
        assert published.error is not None
        assert published.error.code == "source_reauthorization_required"
    assert len(company.asked("refresh_token")) == 1
    company.dead = False
    import_grant(store, "company", company.person(refresh_token=company.renew()), replace=True)
    for name in ("saas", "api"):
        assert rotate_now(store, name, force=False).outcome == "rotated"
        assert published_of(store, name).state == "active"


def test_an_answer_of_the_provider_that_is_lost_spends_nothing(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a fault of the identity provider would leave a grant in doubt, though nothing was spent."""
    import_grant(files, "company", company.person())
    import_grant(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (503, {}) if "audience" in fields else None
    assert rotate_now(files, "saas").outcome == "transient"
    company.answer = lambda fields: (500, {}) if "audience" in fields else None
    result = rotate_now(files, "saas")
    assert (result.outcome, grant_of(files, "saas").doubt) == ("transient", None)
    assert "the identity provider company" in result.detail
    company.answer = lambda _: None
    assert rotate_now(files, "saas").outcome == "rotated"


def test_a_provider_that_is_busy_does_not_stop_the_server(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each grant of a server would wait for a provider that it does not need, or demands would not wait."""
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    import_grant(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (429, {}) if "audience" in fields else None
    company.headers = {"Retry-After": "120"}
    assert rotate_now(files, "saas", force=False).outcome == "transient"
    grant, now = grant_of(files, "saas"), clocks.now()
    assert grant.failure is not None
    assert grant.failure.busy_until is None
    for passed, expected in ((60.0, Wait), (121.0, Rotate)):
        later = msgspec.structs.replace(
            now, wall=now.wall + passed, monotonic=now.monotonic + passed, boottime=now.boottime + passed
        )
        assert isinstance(policy.decide(grant, later, demanded=True), expected)


def test_an_id_token_of_a_short_life_is_brought_again(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a person would be told to log in, though each refresh brings an id_token."""
    company.id_token_life = 25.0
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    import_grant(files, "saas", saas.managed("company"))
    assert rotate_now(files, "saas").outcome == "rotated"
    assert grant_of(files, "company").generation == 1, "the new one is used"
    grant = grant_of(files, "company")
    assert grant.id_token_expires_at is not None
    assert grant.id_token_issued_at is not None
    changes = {
        "id_token_expires_at": grant.id_token_expires_at - 26,
        "id_token_issued_at": grant.id_token_issued_at - 26,
        "last_rotation_at": grant.id_token_issued_at - 26,
    }
    change(files, "company", **changes)
    assert rotate_now(files, "saas").outcome == "rotated"
    assert grant_of(files, "company").generation == 2
