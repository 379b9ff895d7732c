"""Make the next state of a grant from an outcome. Pure: the caller passes the times."""

from typing import Final, assert_never

import msgspec

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import accounts, policy, refresh_life, token_rejection
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    Failed,
    GrantRejected,
    NotSent,
    Outcome,
    ResourceRefused,
    TokensIssued,
    TooEarly,
    Transient,
    Unreadable,
)
from refresher.grants.record import Doubt, Failure, FailureKind, Grant, with_spent
from refresher.grants.sources import REFUSED_CODES, SOURCE_CODES
from refresher.grants.tokens import needs_proof, not_before

__all__ = ["INTERRUPTED", "apply", "mark_in_doubt", "mark_interrupted", "mark_restored", "with_access_token"]

INTERRUPTED: Final = "an attempt was cut off after its request may have been sent, before its answer was saved"
"""The description of a doubt that an interrupted attempt leaves."""

_SHORTEST_PAUSE: Final = 1.0
_LOCAL_CODES: Final = ("assertion_missing", "assertion_expired")
_LONGEST_LOCAL_PAUSE: Final = 30.0


def apply(
    grant: Grant,
    outcome: Outcome,
    *,
    sent: Moment | None,
    now: Moment,
    demanded: bool,
    generation: int,
    forced: bool = False,
    reason: str | None = None,
) -> Grant:
    """Return ``grant`` after ``outcome``.

    ``sent``: when the last request was sent; ``None`` if none was. ``generation``: that of a successful rotation.
    ``forced``: a person asked for it before it was due. ``reason``: what the demand holds.
    """
    if isinstance(outcome, TokensIssued):
        rotated = _rotated(grant, outcome, sent=sent or now, now=now, demanded=demanded, generation=generation)
        return token_rejection.after_rotation(grant, rotated, now, demanded=demanded, forced=forced, reason=reason)
    if outcome.refusal:
        grant = msgspec.structs.replace(grant, refusals=grant.refusals + 1)
    match outcome:
        case Transient():
            wait = min(outcome.retry_after or 0.0, policy.MAX_WAIT)
            # The server is busy until a time that it named: that counts for all its grants.
            is_busy = outcome.retry_after is not None and not outcome.refusal
            busy_until = now.wall + wait if is_busy and not outcome.from_provider else None
            failed = _failed(grant, "transient", outcome, now, wait, busy_until)
            return _with_busy_provider(failed) if is_busy and outcome.from_provider else failed
        case TooEarly():
            early = msgspec.structs.replace(grant, refuses_early=grant.refuses_early or not grant.dead)
            # Wait for the expiry of the access token: a wrong clock cannot make this wait longer than the lifetime.
            return _failed(early, "too_early", outcome, now, policy.remaining_lifetime(grant, now))
        case Ambiguous() | Unreadable() | ResourceRefused() if grant.refresh_token is not None:
            doubt = Doubt(since=sent or now, kept=outcome.kept if isinstance(outcome, Unreadable) else None)
            return mark_in_doubt(grant, outcome.description, doubt=doubt, now=now)
        case NotSent() | Ambiguous() | Unreadable() | ResourceRefused():
            return _failed(grant, "transient", outcome, now)  # nothing was spent
        case ClientRejected():
            return _failed(grant, "client_rejected", outcome, now)
        case GrantRejected():
            return _rejected(grant, outcome, now)
        case _:
            assert_never(outcome)


def with_access_token(grant: Grant, tokens: TokensIssued, sent: Moment) -> Grant:
    """Return ``grant`` with the access token that was requested at ``sent``."""
    return msgspec.structs.replace(
        grant,
        # RFC 6749 section 5.1: a missing scope means the requested or the unchanged one.
        scope=grant.scope if tokens.scope is None else tokens.scope,
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        issued_at=sent.wall,
        issued=sent,
        expires_at=tokens.expires_at if tokens.expires_in is None else sent.wall + tokens.expires_in,
        **accounts.identity(grant, tokens.id_token, tokens.access_token, sent=sent.wall),
    )


def mark_in_doubt(grant: Grant, description: str, *, doubt: Doubt, now: Moment) -> Grant:
    """Return ``grant`` in ``doubt``, or in its earlier doubt that is not settled yet."""
    # The earliest doubt counts: at the latest then, the server saw the token and started its grace period.
    doubtful = msgspec.structs.replace(grant, doubt=(grant.doubt or doubt).merged_with(doubt))
    return _failed(doubtful, "in_doubt", Ambiguous(code="in_doubt", description=description), now)


def mark_interrupted(grant: Grant, description: str, *, doubt: Doubt, now: Moment) -> Grant:
    """Return ``grant`` after an attempt that ended before its own replay; if a replay is allowed, it is due at once."""
    if grant.refresh_token is None:
        marked = _failed(grant, "transient", Ambiguous(description=description), now)
    else:
        marked = mark_in_doubt(grant, description, doubt=doubt, now=now)
    if marked.dead or marked.failure is None or not policy.replay_allowed(marked, now):
        return marked
    return msgspec.structs.replace(marked, failure=msgspec.structs.replace(marked.failure, retry_at=now.wall))


def with_doubt_restarted(grant: Grant, now: Moment) -> Grant:
    """Return ``grant`` with a doubt that begins now, if the clock says that it begins later, so that its wait ends."""
    if not policy.doubt_in_future(grant, now):
        return grant
    return msgspec.structs.replace(grant, doubt=Doubt(since=now, replay_over=True))


def mark_restored(grant: Grant, generation: int, lifetime: tuple[float, float | None] | None, *, now: Moment) -> Grant:
    """Return ``grant`` in doubt, because readers have a later ``generation``: its record is from a backup.

    ``lifetime``: when the access token of the readers was issued and expires, in epoch seconds; ``None`` without one.
    """
    description = (
        f"the record is of generation {grant.generation}, but readers have generation {generation}: it "
        "was restored from a backup, and its refresh token may have been used since"
    )
    # An earlier doubt was about an earlier token, so this one begins now; a spill may still come back.
    before = grant.doubt or Doubt(since=now)
    since = before.since if before.restored else now
    doubt = msgspec.structs.replace(before, since=since, replay_over=True, restored=True, kept=None)
    grant = msgspec.structs.replace(grant, generation=generation, doubt=None)
    if lifetime is not None:
        issued_at, expires_at = lifetime
        grant = msgspec.structs.replace(
            grant, access_token=None, issued_at=issued_at, issued=None, expires_at=expires_at, failure=None
        )
    return mark_in_doubt(grant, description, doubt=doubt, now=now)


def _rotated(
    grant: Grant, tokens: TokensIssued, *, sent: Moment, now: Moment, demanded: bool, generation: int
) -> Grant:
    before, grant = grant, _with_refresh_token(grant, tokens, sent, now)
    if needs_proof(tokens.token_type):
        # The agents keep the access token that they have; the new refresh token must not be lost.
        description = f"the server now issues {tokens.token_type} tokens, which need a proof that agents do not send"
        settled = msgspec.structs.replace(grant, doubt=None)
        return _rejected(settled, GrantRejected(code="unsupported_token_type", description=description), now)
    scheduled = grant.access_token is None or sent.wall >= policy.due_at(grant)
    # The server rejected the grant while the access token was valid, and now accepts it.
    rejection = grant.failure if grant.dead and grant.refresh_token is not None else None
    was_early = rejection is not None and grant.expires_at is not None and rejection.at < grant.expires_at
    return msgspec.structs.replace(
        refresh_life.after_rotation(before, with_access_token(grant, tokens, sent), tokens, sent),
        generation=generation,
        last_rotation_at=sent.wall,
        dead=False,
        failures=0,
        refusals=0,
        failure=None,
        doubt=None,
        demanded=grant.demanded + 1 if demanded and not scheduled else 0,
        refuses_early=grant.refuses_early or was_early,
    )


def _with_refresh_token(grant: Grant, tokens: TokensIssued, sent: Moment, now: Moment) -> Grant:
    old, new = grant.refresh_token, tokens.refresh_token
    # Old versions of django-oauth-toolkit answer a replay with a refresh token that was used before (#702).
    if old is None or new is None or new.fingerprint() in grant.spent:
        return grant
    return msgspec.structs.replace(
        grant,
        refresh_token=new,
        not_before=_not_before(new, tokens, sent, now),
        spent=grant.spent if new == old else with_spent(grant.spent, old),
    )


def _not_before(new: Secret, tokens: TokensIssued, sent: Moment, now: Moment) -> float | None:
    usable = not_before(new.reveal(), now.wall, tokens.clock_skew)
    # Converted to the clock of ``sent``, from which the other times count: the clock may have been set in between.
    return None if usable is None else usable - now.wall + sent.wall + sent.seconds_until(now)


def _failed(
    grant: Grant, kind: FailureKind, outcome: Failed, now: Moment, wait: float = 0.0, busy_until: float | None = None
) -> Grant:
    """Return ``grant`` after a failure, with a retry after the backoff or after ``wait`` seconds if that is longer."""
    failures = grant.failures + 1
    pause = 0.0 if _may_be_revoked_early(grant, outcome) else policy.backoff(grant, failures)
    if outcome.code in _LOCAL_CODES:
        pause = min(pause, _LONGEST_LOCAL_PAUSE)  # nothing is sent, and the file can be good again at any time
    if (rest := refresh_life.remaining(grant, now)) is not None and rest > 0:
        pause = min(pause, max(rest / 2, _SHORTEST_PAUSE))  # the refresh token ends: do not wait beyond its end
    # Another refusal than a denial says that the policy does not deny any more.
    is_over = _caused_by_source(grant) or (grant.assertion is not None and outcome.refusal)
    if grant.dead and not is_over:
        # A person forced another attempt, or it was time to ask again, and the answer does not change the rejection.
        rejection = grant.failure
        if rejection is not None and rejection.retry_at is not None:
            if grant.assertion is not None:
                pause = rejection.retry_at - rejection.at  # asked once a day
            rejection = msgspec.structs.replace(
                rejection, at=now.wall, retry_at=now.wall + max(pause, wait), moment=now
            )
        return msgspec.structs.replace(grant, failures=failures, failure=rejection)
    failure = Failure(
        outcome=kind,
        code=outcome.code,
        description=outcome.description,
        at=now.wall,
        retry_at=now.wall + max(pause, wait),
        moment=now,
        busy_until=busy_until,
    )
    # A source that needed a person is not the cause any more.
    return msgspec.structs.replace(grant, dead=False, failures=failures, failure=failure)


def _rejected(grant: Grant, rejection: GrantRejected, now: Moment) -> Grant:
    description = rejection.description
    if grant.doubt is not None:
        description = f"{_cause(grant.doubt)}; {description}"
    elif grant.dead and grant.failure is not None and rejection.retry_after is None and not _caused_by_source(grant):
        # A person forced another attempt: the first description still describes the cause best.
        description = grant.failure.description
    failure = Failure(
        outcome="reauthorization_required",
        code=rejection.code,
        description=description,
        at=now.wall,
        retry_at=None if rejection.retry_after is None else now.wall + rejection.retry_after,
        moment=None if rejection.retry_after is None else now,
    )
    return msgspec.structs.replace(grant, dead=True, failures=grant.failures + 1, doubt=None, failure=failure)


def _with_busy_provider(grant: Grant) -> Grant:
    if grant.failure is None:
        return grant
    return msgspec.structs.replace(grant, failure=msgspec.structs.replace(grant.failure, provider_busy=True))


def _caused_by_source(grant: Grant) -> bool:
    return grant.assertion is not None and grant.failure is not None and grant.failure.code in SOURCE_CODES


def _may_be_revoked_early(grant: Grant, outcome: Failed) -> bool:
    """Whether the next attempt rotates a source first, whose token was refused: then it does not wait."""
    has_sources = grant.assertion is not None and bool(grant.assertion.sources)
    return has_sources and outcome.refusal and outcome.code in REFUSED_CODES and grant.refusals == 1


def _cause(doubt: Doubt) -> str:
    if doubt.restored and doubt.kept is None:
        return "the record was restored from a backup, and its refresh token had been used since"
    how = "never arrived" if doubt.kept is None else f"could not be read ({doubt.kept})"
    return f"the rotation was lost: the answer to an earlier attempt {how}"
