"""The one HTTP call: a refresh token out, an outcome back (RFC 6749 section 6)."""

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
    GrantDead,
    NotSent,
    Outcome,
    ResourceRefused,
    Rotated,
    TooEarly,
    Unintelligible,
)
from refresher.grants.record import Doubt, Grant
from refresher.oauth.http_client import Posted, post
from refresher.oauth.token_request import request

__all__ = ["DEADLINE", "Exchanged", "Hooks", "exchange"]

DEADLINE: Final = 20.0
"""Seconds for all attempts together: shorter than the wait for a lock, and than a pod's grace period."""

_WORTH_A_REPLAY: Final = 1.0
_NO_REFRESH_TOKEN: Final = "the server gave no refresh token with the login"  # noqa: S105  words


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, when its requests left (``None``: none did), and what is still in doubt of them."""

    outcome: Outcome
    first_sent: Moment | None
    last_sent: Moment | None
    doubt: Doubt | None
    """Set where an answer was lost on the way to this outcome, in this exchange or before."""
    raw: Secret | None
    """The body of a success, one character for each byte (latin-1)."""
    resource_refused: bool = False
    """The server was seen to refuse ``resource`` on the way to this outcome."""


class Hooks(Protocol):
    """What the caller does at the two points that matter."""

    def before_first_byte(self) -> None:
        """Is called before anything that holds the refresh token leaves; where it raises, nothing does."""

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep a success that cannot be read, received at ``at``; say where. It may hold the only copy of a token."""


def exchange(
    grant: Grant, *, ca_file: str | None, hooks: Hooks, demanded: bool = False, deadline: float = DEADLINE
) -> Exchanged:
    """Spend the refresh token of ``grant`` once; twice where the first answer was lost and the server allows a replay.

    ``demanded``: an agent says that the access token is refused, so there is none to protect or to wait for. Returns
    within ``deadline`` seconds, those aside in which the process was stopped; raises nothing but ``KeyboardInterrupt``
    and the like.
    """
    if not grant.renewable:
        return Exchanged(
            outcome=_unrenewable(grant, demanded=demanded), first_sent=None, last_sent=None, doubt=None, raw=None
        )
    ends = time.monotonic() + deadline
    replayable = policy.replay_open(grant, clocks.now())
    first = _attempt(grant, ca_file, hooks, demanded, deadline / 2 if replayable else deadline)
    sent = first.first_sent
    if not isinstance(first.outcome, Ambiguous | Unintelligible | ResourceRefused) or sent is None:
        return first
    refused = isinstance(first.outcome, ResourceRefused) and server_behavior.sends_resource(grant)
    first = msgspec.structs.replace(first, resource_refused=refused)
    doubt = None if grant.refresh_token is None else (grant.doubt or Doubt(since=sent)).knowing(_kept(first.outcome))
    doubtful = msgspec.structs.replace(
        grant,
        doubt=doubt,
        resource_refused=grant.resource_refused or refused,
    )
    remaining = ends - time.monotonic()
    if remaining < _WORTH_A_REPLAY or not _may_repeat(doubtful, refused=refused, demanded=demanded):
        return first
    second = _attempt(doubtful, ca_file, hooks, demanded, remaining)
    # Where the second answer settles nothing, the first loss stands; but an answer that is kept is told.
    tells_more = isinstance(second.outcome, Rotated | GrantDead | Unintelligible)
    return msgspec.structs.replace(
        second if tells_more else first,
        first_sent=first.first_sent,
        last_sent=second.last_sent or first.last_sent,
        doubt=doubt.knowing(_kept(second.outcome)) if doubt else None,
        resource_refused=refused,
    )


def _may_repeat(doubtful: Grant, *, refused: bool, demanded: bool) -> bool:
    """Whether the same refresh token may go once more: where the server allows a replay.

    A refusal of ``resource`` also where there is no live access token to lose: most servers look at it before they
    spend the refresh token, but not all.
    """
    now = clocks.now()
    return policy.may_send(doubtful, now, demanded=demanded) if refused else policy.replay_open(doubtful, now)


def _kept(outcome: Outcome) -> str | None:
    return outcome.kept if isinstance(outcome, Unintelligible) else None


def _attempt(grant: Grant, ca_file: str | None, hooks: Hooks, demanded: bool, limit: float) -> Exchanged:
    def before_first_byte() -> None:
        # Resolving and connecting take their time: a grace that was open then may be over now.
        if not policy.may_send(grant, clocks.now(), demanded=demanded):
            raise TimeoutError("the server's grace for a replay has passed on the way")
        hooks.before_first_byte()

    posted = post(
        grant,
        grant.token_endpoint,
        lambda: request(grant, clocks.now().wall),
        ca_file=ca_file,
        limit=limit,
        known=_secrets(grant),
        before_first_byte=before_first_byte,
    )
    body = bytes(posted.body)
    try:
        outcome = _judge(grant, posted, demanded=demanded)
    except Exception as error:  # noqa: BLE001  a fault of ours must not cost the only copy of a token
        outcome = Unintelligible(
            description=f"the answer could not be judged ({type(error).__name__})",
            answer=Secret(body.decode("latin-1")),
        )
    if isinstance(outcome, Unintelligible) and grant.refresh_token is not None:
        kept = hooks.keep_answer(outcome.answer.reveal().encode("latin-1"), clocks.now().wall)
        outcome = msgspec.structs.replace(outcome, description=f"{outcome.description}; {kept}", kept=kept)
    return Exchanged(
        outcome=outcome,
        first_sent=posted.sent,
        last_sent=posted.sent,
        doubt=grant.doubt,
        raw=Secret(body.decode("latin-1")) if isinstance(outcome, Rotated) else None,
    )


def _judge(grant: Grant, posted: Posted, *, demanded: bool) -> Outcome:
    if posted.certificate_refused and posted.status is None:
        # TLS 1.3 tells it after the request has left; but whoever refuses the handshake never reads what follows.
        return ClientRejected(
            code="invalid_client", description=f"{posted.problem}; the server does not accept client_cert, or wants one"
        )
    if posted.sent is None:
        return NotSent(description=f"nothing was sent: {posted.problem}")
    if posted.status is None:
        return Ambiguous(description=f"the request was sent and its answer was lost: {posted.problem}")
    outcome = posted.judged(_secrets(grant))
    # What counts is when it was asked: a machine that slept before it read the answer would take "too early" for a
    # verdict.
    if isinstance(outcome, GrantDead) and policy.is_early(grant, posted.sent):
        # A demand may be false, and would end a good grant: only one that stands for long calls for a person.
        return TooEarly(code=outcome.code, description=outcome.description, refusal=demanded)
    return outcome


def _unrenewable(grant: Grant, *, demanded: bool) -> Outcome:
    """Return what can be said without asking anybody: there is nothing to ask with."""
    if policy.life_left(grant, clocks.now()) > 0:
        # A demand may be false: only one that stands for long calls for a person.
        return TooEarly(code="no_refresh_token", description=_NO_REFRESH_TOKEN, refusal=demanded)
    return GrantDead(code="no_refresh_token", description=f"{_NO_REFRESH_TOKEN}, and its access token has ended")


def _secrets(grant: Grant) -> tuple[Secret | None, ...]:
    return grant.refresh_token, grant.access_token, grant.client_secret
