"""What an outcome makes of a grant. Pure: the caller brings the times."""

from typing import assert_never

import msgspec

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    NotSent,
    Outcome,
    ResourceRefused,
    Rotated,
    TooEarly,
    Transient,
    Unintelligible,
)
from refresher.grants.record import Doubt, Failure, Grant, Waiting, spend
from refresher.oauth.token_response import usable_from

__all__ = ["after", "cut_off", "doubted", "with_access"]

_LOST = "the rotation was lost: the answer to an earlier attempt"
_RESTORED = "the record was restored from a backup, and its refresh token had been used since"


def after(
    grant: Grant,
    outcome: Outcome,
    *,
    first_sent: Moment | None,
    last_sent: Moment | None,
    now: Moment,
    demanded: bool,
    generation: int,
) -> Grant:
    """Return the grant as it stands after ``outcome``.

    ``first_sent`` and ``last_sent``: when the requests of this attempt left, ``None`` where none did. ``generation``:
    the one that a rotation gets.
    """
    match outcome:
        case Rotated():
            sent = now if last_sent is None else last_sent
            return _rotated(grant, outcome, sent=sent, now=now, demanded=demanded, generation=generation)
        case NotSent():
            return _waiting(grant, "transient", "temporarily_unavailable", outcome.description, now)
        case Transient():
            refused = _refused(grant) if outcome.refusal else grant
            waiting = _waiting(refused, "transient", outcome.code, outcome.description, now, outcome.retry_after)
            return waiting if outcome.refusal else _everybody(waiting, outcome.retry_after)
        case TooEarly():
            return _too_early(_refused(grant) if outcome.refusal else grant, outcome, now)
        case Ambiguous() | Unintelligible() if grant.refresh_token is None:
            return _waiting(grant, "transient", "server_error", outcome.description, now)  # nothing was used up
        case ResourceRefused() if grant.refresh_token is None:
            return _waiting(_refused(grant), "transient", outcome.code, outcome.description, now)
        case ResourceRefused():
            return doubted(_refused(grant), outcome.description, doubt=Doubt(since=first_sent or now), now=now)
        case Ambiguous():
            return doubted(grant, outcome.description, doubt=Doubt(since=first_sent or now), now=now)
        case Unintelligible():
            unread = Doubt(since=first_sent or now, kept=outcome.kept)
            return doubted(grant, outcome.description, doubt=unread, now=now)
        case ClientRejected():
            return _waiting(_refused(grant), "client_rejected", outcome.code, outcome.description, now)
        case GrantDead():
            return _dead(grant, outcome, now)
        case _:
            assert_never(outcome)


def with_access(grant: Grant, answer: Rotated, sent: Moment) -> Grant:
    """Return the grant with the access token that came for asking at ``sent``."""
    return msgspec.structs.replace(
        grant,
        # RFC 6749 section 5.1: absent means unchanged, or as it was asked for.
        scope=grant.scope if answer.scope is None else answer.scope,
        access_token=answer.access_token,
        token_type=answer.token_type,
        issued_at=sent.wall,
        issued=sent,
        expires_at=answer.expires_at if answer.expires_in is None else sent.wall + answer.expires_in,
    )


def doubted(grant: Grant, description: str, *, doubt: Doubt, now: Moment) -> Grant:
    """Return the grant in ``doubt``, or in the earlier one that nothing has settled yet."""
    # The earliest doubt counts: the server's grace began, at the latest, when it first saw the token.
    marked = msgspec.structs.replace(grant, doubt=(grant.doubt or doubt).and_then(doubt))
    return _waiting(marked, "in_doubt", "in_doubt", description, now)


def cut_off(grant: Grant, description: str, *, doubt: Doubt, now: Moment) -> Grant:
    """Return the grant whose attempt was cut off before it could make its own replay: where one is open, at once."""
    if grant.refresh_token is None:
        doubtless = _waiting(grant, "transient", "server_error", description, now)
        return _at_once(doubtless, now)
    changed = doubted(grant, description, doubt=doubt, now=now)
    if changed.dead or changed.failure is None or not policy.replay_open(changed, now):
        return changed
    return _at_once(changed, now)


def _at_once(grant: Grant, now: Moment) -> Grant:
    if grant.failure is None:
        return grant
    return msgspec.structs.replace(grant, failure=msgspec.structs.replace(grant.failure, retry_at=now.wall))


def _everybody(grant: Grant, retry_after: float | None) -> Grant:
    """Return the grant that tells all others of its server to wait, where the server named a time."""
    if grant.failure is None or grant.dead or retry_after is None:
        return grant
    busy_until = grant.failure.at + min(retry_after, policy.MAX_WAIT)
    return msgspec.structs.replace(grant, failure=msgspec.structs.replace(grant.failure, busy_until=busy_until))


def _refused(grant: Grant) -> Grant:
    return msgspec.structs.replace(grant, refusals=grant.refusals + 1)


def _rotated(grant: Grant, answer: Rotated, *, sent: Moment, now: Moment, demanded: bool, generation: int) -> Grant:
    fresh = answer.refresh_token
    # An old django-oauth-toolkit answers a replay with a refresh token that was used up before (#702).
    if grant.refresh_token is None or (fresh is not None and fresh.fingerprint() in grant.spent):
        fresh = None
    replaced = fresh is not None and fresh != grant.refresh_token
    scheduled = grant.access_token is None or sent.wall >= policy.due_at(grant)
    return msgspec.structs.replace(
        with_access(grant, answer, sent),
        generation=generation,
        refresh_token=grant.refresh_token if fresh is None else fresh,
        not_before=grant.not_before if fresh is None else _usable_from(fresh, answer, sent, now),
        spent=spend(grant.spent, grant.refresh_token) if replaced and grant.refresh_token else grant.spent,
        last_rotation_at=sent.wall,
        dead=False,
        failures=0,
        refusals=0,
        failure=None,
        doubt=None,
        demanded=grant.demanded + 1 if demanded and not scheduled else 0,
        refuses_early=grant.refuses_early or _was_early(grant),
    )


def _usable_from(fresh: Secret, answer: Rotated, sent: Moment, now: Moment) -> float | None:
    usable = usable_from(fresh.reveal(), now.wall, answer.clock_ahead)
    if usable is None or not sent.same_boot(now):
        return usable
    # Reckoned when the answer was there; it counts from when the request left, and a clock may have been set between.
    return usable - now.wall + sent.wall + now.boottime - sent.boottime


def _was_early(grant: Grant) -> bool:
    """A verdict while the access token lived, mistaken as the server now shows, was about the time of asking."""
    verdict = grant.failure if grant.dead else None
    return verdict is not None and grant.expires_at is not None and verdict.at < grant.expires_at


def _waiting(
    grant: Grant, outcome: Waiting, code: str, description: str, now: Moment, retry_after: float | None = None
) -> Grant:
    failures = grant.failures + 1
    if grant.dead:
        # A person forced one more try and it told nothing: the verdict stands.
        return msgspec.structs.replace(grant, failures=failures)
    wait = max(policy.backoff(grant, failures), min(retry_after or 0.0, policy.MAX_WAIT))
    return msgspec.structs.replace(
        grant,
        failures=failures,
        failure=Failure(
            outcome=outcome,
            code=code,
            description=description,
            at=now.wall,
            retry_at=now.wall + wait,
            moment=now,
        ),
    )


def _too_early(grant: Grant, outcome: TooEarly, now: Moment) -> Grant:
    failures = grant.failures + 1
    if grant.dead:
        return msgspec.structs.replace(grant, failures=failures)
    # To the end of the token, which no clock may put further away than its lifetime, nor nearer than a backoff.
    wait = policy.life_left(grant, now)
    return msgspec.structs.replace(
        grant,
        failures=failures,
        refuses_early=True,
        failure=Failure(
            outcome="too_early",
            code=outcome.code,
            description=outcome.description,
            at=now.wall,
            retry_at=now.wall + max(wait, policy.backoff(grant, failures)),
            moment=now,
        ),
    )


def _cause(doubt: Doubt) -> str:
    if doubt.kept is not None:
        return f"{_LOST} could not be read ({doubt.kept})"
    return _RESTORED if doubt.restored else f"{_LOST} never arrived"


def _dead(grant: Grant, verdict: GrantDead, now: Moment) -> Grant:
    description = verdict.description
    if grant.doubt is not None:
        description = f"{_cause(grant.doubt)}; {description}"
    elif grant.dead and grant.failure is not None:
        # A person forced one more try: what the first verdict told of its cause is still all that is known of it.
        description = grant.failure.description
    return msgspec.structs.replace(
        grant,
        dead=True,
        failures=grant.failures + 1,
        doubt=None,
        failure=Failure(
            outcome="reauthorization_required",
            code=verdict.code,
            description=description,
            at=now.wall,
            retry_at=None,
        ),
    )
