"""Present a token of somebody else in a token request: as an assertion (RFC 7523) or as a subject (RFC 8693).

For enterprise-managed authorization, it is first exchanged at the identity provider for an identity assertion
(draft-ietf-oauth-identity-assertion-authz-grant section 4.3), which goes only to the server that is its audience (I8).
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import server_behavior
from refresher.grants.assertion import GRANT_TYPES, ID_JAG, ID_TOKEN, REFRESH_TOKEN, Assertion, foreign_audience
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantRejected,
    NotSent,
    Outcome,
    ResourceRefused,
    TokensIssued,
    Transient,
    describe,
    error_code,
)
from refresher.grants.record import Grant
from refresher.grants.tokens import jwt_claims
from refresher.oauth.http_client import PostResult, post
from refresher.oauth.params import with_params

__all__ = ["NOTHING", "Minted", "Presented", "fields_of", "judged", "mint"]

_DAY: Final = 86400.0
_NO_ACCESS_TOKEN: Final = Transient(
    code="invalid_token_type",
    description="the server answered with a token that is no access token (token_type, issued_token_type)",
    refusal=True,
)
_BY_ADMINISTRATOR: Final = "blocked by an administrator"
_DENIALS: Final = ("access_denied", "invalid_target", "unauthorized_client")
"""What an identity provider answers if its policy does not allow the exchange: MCP enterprise-managed authorization
section 4.1 and RFC 8693 section 2.2.2."""


class Presented(NamedTuple):
    """The tokens of others that a request of a grant presents."""

    subject: Secret | None = None
    """The assertion, or the subject token."""
    actor: Secret | None = None
    provider: Grant | None = None
    """The grant at the identity provider whose ``id_token`` is ``subject``, and still has to be exchanged there."""
    problem: NotSent | GrantRejected | None = None
    """Why there is nothing to present: then nothing is sent."""

    @property
    def secrets(self) -> tuple[Secret | None, ...]:
        """What no description may repeat."""
        return (self.subject, self.actor)


NOTHING: Final = Presented()


class Minted(NamedTuple):
    """An identity assertion, or the outcome of the grant without one."""

    assertion: Secret | None
    outcome: Outcome | None = None
    sent: Moment | None = None


def fields_of(assertion: Assertion, presented: Presented) -> dict[str, str]:
    """Return the fields of a token request that presents the tokens."""
    subject = "" if presented.subject is None else presented.subject.reveal()
    fields = {"grant_type": GRANT_TYPES[assertion.grant_type]}
    if assertion.grant_type == "jwt_bearer":
        return fields | {"assertion": subject}
    fields |= {"subject_token": subject, "subject_token_type": assertion.subject.token_type}
    if assertion.actor is not None and presented.actor is not None:
        fields |= {"actor_token": presented.actor.reveal(), "actor_token_type": assertion.actor.token_type}
    if assertion.audience is not None:
        fields["audience"] = assertion.audience
    if assertion.requested_token_type is not None:
        fields["requested_token_type"] = assertion.requested_token_type
    return fields


def judged(grant: Grant, presented: Presented, outcome: Outcome) -> Outcome:
    """Return what an answer to an assertion means: the next assertion can be accepted, so no rejection is final.

    A denial by a policy is asked again after a day.
    """
    if grant.assertion is None:
        return outcome
    if isinstance(outcome, TokensIssued):
        return outcome if _is_access_token(outcome, grant.assertion) else _NO_ACCESS_TOKEN
    if error_code(outcome) == "access_denied":
        return _denied(describe(outcome))
    if isinstance(outcome, ResourceRefused) and (
        grant.assertion.grant_type == "token_exchange" or grant.assertion.idp is not None
    ):
        # RFC 8693 section 2.2.2: for no target that was named. Without it, the token would be for another one.
        return Transient(code=outcome.code, description=outcome.description, refusal=True)
    if isinstance(outcome, GrantRejected):
        text = f"{outcome.description}; the server does not accept {_origin_of(grant.assertion)}"
        text += _audience_of(grant, presented)
        return Transient(code=outcome.code, description=text, refusal=True)
    return outcome


def mint(
    grant: Grant,
    presented: Presented,
    *,
    ca_file: str | None,
    timeout: float,
    before_first_byte: Callable[[], None] = lambda: None,
) -> Minted:
    """Exchange the ``id_token`` of the provider's grant for an identity assertion for the server of ``grant``.

    Takes ``timeout`` seconds at most. Raises only ``KeyboardInterrupt`` and the like.
    """
    provider, subject, assertion = presented.provider, presented.subject, grant.assertion
    if provider is None or subject is None or assertion is None:
        return Minted(subject)
    ends = time.monotonic() + timeout
    fields = {
        "grant_type": GRANT_TYPES["token_exchange"],
        "requested_token_type": ID_JAG,
        "audience": assertion.audience or "",
        "subject_token": subject.reveal(),
        "subject_token_type": ID_TOKEN,
    }
    if grant.resource is not None:
        fields["resource"] = grant.resource
    if (scope := server_behavior.scope_to_send(grant)) is not None:
        fields["scope"] = scope

    def send(client: Grant) -> PostResult:
        return post(
            client,
            provider.token_endpoint,
            with_params(fields, ()),
            ca_file=ca_file,
            timeout=max(ends - time.monotonic(), 0.0),
            secrets=(subject,),
            before_first_byte=before_first_byte,
        )

    result = send(provider)
    outcome = _outcome(provider, result)
    if server_behavior.refuses_client_id(provider, outcome):
        # As for any request of this client; nothing is spent by it.
        again = send(msgspec.structs.replace(provider, omits_client_id=True))
        if isinstance(_outcome(provider, again), TokensIssued):
            result, outcome = again, _outcome(provider, again)
    if not isinstance(outcome, TokensIssued):
        return Minted(None, outcome, result.sent_at)
    if (problem := _mismatch(outcome, assertion)) is not None:
        text = f"the identity provider {provider.name} answered with {problem}; it was sent to nobody"
        return Minted(None, Transient(code="invalid_assertion", description=text, refusal=True), result.sent_at)
    return Minted(outcome.access_token)


def _outcome(provider: Grant, result: PostResult) -> Outcome:
    """Return what the answer of the identity provider means for the grant that needs its assertion."""
    who = f"the identity provider {provider.name}"
    if result.status is None:
        if result.sent_at is None:
            return NotSent(description=f"{who} was not asked: {result.error}")
        return Ambiguous(description=f"{who} was asked, and its answer was lost: {result.error}")
    outcome = result.outcome()
    if isinstance(outcome, TokensIssued):
        return outcome
    text = describe(outcome, sender=who)
    if error_code(outcome) in _DENIALS:
        return _denied(text)
    match outcome:
        case GrantRejected():
            text += f"; if that does not end by itself, 'refresher login {provider.name}' gets a new id_token"
            return Transient(code=outcome.code, description=text, refusal=True)
        case ResourceRefused() | ClientRejected():
            # Its own client, which a login of the provider's grant mends.
            return Transient(code=outcome.code, description=text, refusal=True)
        case Transient():
            return msgspec.structs.replace(outcome, description=text, from_provider=True)
        case _:
            return msgspec.structs.replace(outcome, description=text)


def _is_access_token(answer: TokensIssued, assertion: Assertion) -> bool:
    """Whether agents can present it: RFC 8693 section 2.2.1 has ``N_A`` for what is none."""
    asked = assertion.requested_token_type
    is_refresh_token = answer.issued_token_type == REFRESH_TOKEN and asked != REFRESH_TOKEN
    return answer.token_type.lower() != "n_a" and not is_refresh_token


def _denied(description: str) -> GrantRejected:
    return GrantRejected(code="access_denied", description=f"{_BY_ADMINISTRATOR}: {description}", retry_after=_DAY)


def _mismatch(answer: TokensIssued, assertion: Assertion) -> str | None:
    """Return why an answer is no identity assertion for the server; ``None`` if it is one."""
    if answer.issued_token_type != ID_JAG:
        return "another type of token than an identity assertion (issued_token_type)"
    audience = jwt_claims(answer.access_token.reveal()).get("aud")
    # Exactly one, and spelled as the issuer is: another server could use an assertion that names two.
    if audience not in (assertion.audience, [assertion.audience]):
        return "an identity assertion whose audience is not this server"
    return None


def _audience_of(grant: Grant, presented: Presented) -> str:
    """Return the clause that an assertion may be for another server, if its audience says so."""
    if grant.assertion is None or grant.assertion.grant_type != "jwt_bearer" or presented.subject is None:
        return ""
    audience = foreign_audience(presented.subject.reveal(), (grant.token_endpoint, grant.issuer))
    usual = grant.token_endpoint if grant.issuer is None else f"{grant.token_endpoint} or {grant.issuer}"
    return "" if not audience else f", whose audience is {audience}: most servers require {usual}"


def _origin_of(assertion: Assertion) -> str:
    """Return where the assertion came from, for a person."""
    source = assertion.subject
    if assertion.idp is not None:
        return f"the identity assertion from {assertion.idp}"
    what = "the assertion" if assertion.grant_type == "jwt_bearer" else "the subject token"
    return f"{what} in {source.file}" if source.file is not None else f"{what} of {source.grant}"
