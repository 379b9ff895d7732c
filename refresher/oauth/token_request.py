"""The token request: send the refresh token, return an outcome (RFC 6749 section 6).

``request_tokens`` sends at most two requests: the second one repeats the first (a replay) after its answer was lost,
and only if the server allows that. ``transition.apply`` then makes the next state of the grant from the result.
"""

import time
from typing import Final, Protocol

import msgspec

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy, server_behavior
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantRejected,
    Lost,
    NotSent,
    Outcome,
    ResourceRefused,
    TokensIssued,
    TooEarly,
    Unreadable,
)
from refresher.grants.record import Doubt, Grant
from refresher.oauth import assertions
from refresher.oauth.assertions import NOTHING, Presented
from refresher.oauth.http_client import DEADLINE, PostResult, post
from refresher.oauth.params import with_params

__all__ = ["Hooks", "TokenRequestResult", "request_tokens"]

_MIN_REPLAY_TIME: Final = 1.0
_NO_REFRESH_TOKEN: Final = "the server gave no refresh token with the login"  # noqa: S105  a message


class TokenRequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, when the last request was sent (``None``: none was), and what is still in doubt."""

    outcome: Outcome
    sent: Moment | None = None
    doubt: Doubt | None = None
    """Since the first request whose answer was lost, in this call or an earlier one."""
    raw: Secret | None = None
    """The body of a success, one character for each byte (latin-1)."""
    resource_refused: bool = False
    """Whether the server refused ``resource`` in this call."""
    client_id_refused: bool = False
    """Whether the server refused ``client_id`` in this call, and accepted the request without it."""


class Hooks(Protocol):
    """What the caller does at the two critical points."""

    def before_first_byte(self) -> None:
        """Called before anything that contains the refresh token is sent. If it raises, nothing is sent."""

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Save an unreadable success, received at ``at``; return where it is. It may be the only copy of a token."""


def request_tokens(
    grant: Grant,
    *,
    ca_file: str | None,
    hooks: Hooks,
    demanded: bool = False,
    deadline: float = DEADLINE,
    presented: Presented = NOTHING,
) -> TokenRequestResult:
    """Use the refresh token of ``grant`` once, or twice if an answer was lost and the server allows a replay.

    ``demanded``: an agent reports that the access token is refused, so there is no valid token to protect or to wait
    for. ``presented``: the tokens of others that a grant with an assertion needs. Returns within ``deadline`` seconds
    of running time. Raises only ``KeyboardInterrupt`` and the like.
    """
    if not grant.renewable:
        return TokenRequestResult(outcome=_not_renewable(grant, demanded=demanded))
    if presented.problem is not None:
        return TokenRequestResult(outcome=presented.problem, doubt=grant.doubt)  # it stays: nothing is sent
    ends = time.monotonic() + deadline
    if presented.provider is not None:
        minted = assertions.mint(
            grant, presented, ca_file=ca_file, timeout=deadline / 2, before_first_byte=hooks.before_first_byte
        )
        if minted.outcome is not None:
            return TokenRequestResult(outcome=minted.outcome, sent=minted.sent, doubt=grant.doubt)
        presented, deadline = Presented(subject=minted.assertion), ends - time.monotonic()
    replay = policy.replay_allowed(grant, clocks.now())
    first = _send(grant, ca_file, hooks, demanded, deadline / 2 if replay else deadline, presented)
    if first.sent is None:
        return first
    if server_behavior.refuses_client_id(grant, first.outcome):
        return _without_client_id(grant, first, ca_file, hooks, demanded, ends, presented)
    if not isinstance(first.outcome, Lost):
        return first
    refused = isinstance(first.outcome, ResourceRefused) and server_behavior.sends_resource(grant)
    first = msgspec.structs.replace(first, resource_refused=refused)
    doubtful = msgspec.structs.replace(grant, doubt=first.doubt, resource_refused=grant.resource_refused or refused)
    # After a refusal of ``resource``, also if there is no valid access token to lose: most servers check ``resource``
    # before they spend the refresh token, but not all.
    now = clocks.now()
    allowed = policy.replay_allowed(doubtful, now) or (
        refused and policy.protected_until(doubtful, now, demanded=demanded) is None
    )
    remaining = ends - time.monotonic()
    if remaining < _MIN_REPLAY_TIME or not allowed:
        return first
    second = _send(doubtful, ca_file, hooks, demanded, remaining, presented)
    # If the second answer settles nothing, the first outcome counts; an unreadable one is reported, as it was saved.
    settles = isinstance(second.outcome, TokensIssued | GrantRejected | Unreadable)
    return msgspec.structs.replace(
        second if settles else first,
        sent=second.sent or first.sent,
        doubt=second.doubt,
        resource_refused=refused,
    )


def _without_client_id(
    grant: Grant,
    first: TokenRequestResult,
    ca_file: str | None,
    hooks: Hooks,
    demanded: bool,
    ends: float,
    presented: Presented,
) -> TokenRequestResult:
    """Send the request again without ``client_id``, unless a live access token could be revoked (I1)."""
    # Servers check the client before they spend the refresh token, but this one may not.
    doubt = grant.doubt if grant.refresh_token is None or first.sent is None else grant.doubt or Doubt(since=first.sent)
    without = msgspec.structs.replace(grant, omits_client_id=True, doubt=doubt)
    protected = policy.protected_until(without, clocks.now(), demanded=demanded) is not None
    remaining = ends - time.monotonic()
    if protected or remaining < _MIN_REPLAY_TIME:
        return first
    second = _send(without, ca_file, hooks, demanded, remaining, presented)
    issued = isinstance(second.outcome, TokensIssued)
    if isinstance(second.outcome, TokensIssued | GrantRejected | Lost):
        # A rejection can come from the first request, so what was known before it still counts.
        return msgspec.structs.replace(second, sent=second.sent or first.sent, client_id_refused=issued)
    return first


def _send(
    grant: Grant, ca_file: str | None, hooks: Hooks, demanded: bool, timeout: float, presented: Presented
) -> TokenRequestResult:
    def before_first_byte() -> None:
        # Resolving and connecting take time: the grace period may have ended since the decision to replay.
        if policy.protected_until(grant, clocks.now(), demanded=demanded) is not None:
            raise TimeoutError("the server's grace period for a replay ended before the request was sent")
        hooks.before_first_byte()

    result = post(
        grant,
        grant.token_endpoint,
        _fields(grant, presented),
        ca_file=ca_file,
        timeout=timeout,
        secrets=presented.secrets,
        before_first_byte=before_first_byte,
    )
    body = Secret(bytes(result.body).decode("latin-1"))
    try:
        outcome = _outcome(grant, presented, result, demanded=demanded)
    except Exception:  # noqa: BLE001  a bug here must not lose the only copy of a token
        outcome = Unreadable(description="refresher could not process the answer; please report this", body=body)
    # Only a refresh token can be spent.
    doubt = grant.doubt if grant.refresh_token is not None else None
    if grant.refresh_token is not None and isinstance(outcome, Lost) and result.sent_at is not None:
        doubt = doubt or Doubt(since=result.sent_at)
        if isinstance(outcome, Unreadable):
            kept = hooks.keep_answer(outcome.body.reveal().encode("latin-1"), clocks.now().wall)
            outcome = msgspec.structs.replace(outcome, description=f"{outcome.description}; {kept}", kept=kept)
            doubt = doubt.with_kept(kept)
    return TokenRequestResult(
        outcome=outcome,
        sent=result.sent_at,
        doubt=doubt,
        raw=body if isinstance(outcome, TokensIssued) else None,
    )


def _outcome(grant: Grant, presented: Presented, result: PostResult, *, demanded: bool) -> Outcome:
    if result.certificate_refused and result.status is None:
        # In TLS 1.3 this error arrives after the request was sent, but the server has not read the request.
        return ClientRejected(
            code="invalid_client",
            description=f"{result.error}; the server does not accept client_cert, or requires one",
        )
    if result.sent_at is None:
        return NotSent(description=f"nothing was sent: {result.error}")
    if result.status is None:
        return Ambiguous(description=f"the request was sent and its answer was lost: {result.error}")
    outcome = result.outcome()
    # The time of sending counts: a machine may sleep between the request and the reading of the answer.
    if isinstance(outcome, GrantRejected) and policy.may_be_too_early(grant, result.sent_at):
        # A demand can be false, and must not end a valid grant: the answer only counts as a refusal.
        return TooEarly(code=outcome.code, description=outcome.description, refusal=demanded)
    return assertions.judged(grant, presented, outcome)


def _not_renewable(grant: Grant, *, demanded: bool) -> Outcome:
    """Return the outcome for a grant without a refresh token: there is nothing to send."""
    if policy.remaining_lifetime(grant, clocks.now()) > 0:
        # A demand can be false, so this only counts as a refusal.
        return TooEarly(code="no_refresh_token", description=_NO_REFRESH_TOKEN, refusal=demanded)
    return GrantRejected(code="no_refresh_token", description=f"{_NO_REFRESH_TOKEN}, and its access token has expired")


def _fields(grant: Grant, presented: Presented) -> dict[str, str]:
    if grant.assertion is not None:
        fields = assertions.fields_of(grant.assertion, presented)
    elif grant.refresh_token is None:
        fields = {"grant_type": "client_credentials"}
    else:
        fields = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token.reveal()}
    if (scope := server_behavior.scope_to_send(grant)) is not None:
        fields["scope"] = scope
    if grant.resource is not None and server_behavior.sends_resource(grant):
        fields["resource"] = grant.resource
    return with_params(fields, server_behavior.renewal_params(grant))
