"""Decide when to rotate a grant.

``decide`` is the only place that decides: ``run`` and ``run-once`` both call it, before they take the lock and again
under it. It is a pure function of the grant, a pending demand and the time, so that all processes decide alike (I9).
The jitter comes from a hash of name and generation for the same reason.
"""

import hashlib
import math
from typing import Final, Literal

import msgspec

from refresher.common.clocks import Moment
from refresher.grants import refresh_life, server_behavior
from refresher.grants.record import Failure, FailureKind, Grant

__all__ = [
    "CLOCK_TOLERANCE",
    "DEFAULT_MAX_AGE",
    "MAX_WAIT",
    "Decision",
    "Rotate",
    "Wait",
    "backoff",
    "decide",
    "doubt_in_future",
    "due_at",
    "expected_expiry",
    "has_access_token",
    "is_forgotten",
    "may_be_too_early",
    "needs_person",
    "protected_until",
    "remaining_lifetime",
    "replay_allowed",
    "retry_at",
    "seconds_until_usable",
]

DEFAULT_MAX_AGE: Final = 3600.0
"""Seconds after which an access token of unknown lifetime counts as expired."""

CLOCK_TOLERANCE: Final = 60.0
"""Seconds by which two clocks may differ, or one clock before and after it was set."""

MAX_WAIT: Final = 3600.0
"""The longest backoff in seconds, also if ``Retry-After`` asks for more."""

_DUE_FRACTION: Final = 0.75
_DUE_FRACTION_IF_REVOKED: Final = 0.9
_PERSON_AFTER_REFUSALS: Final = 10
_PERSON_AFTER_FORGOTTEN: Final = 2
_DAY: Final = 86400.0
_MAX_JITTER: Final = 60.0
_JITTER_FRACTION: Final = 0.05
_MIN_INTERVAL: Final = 1.0
_TRANSIT_TIME: Final = 1.0
_FIRST_BACKOFF: Final = 10.0
_MAX_BACKOFF: Final = 300.0
_DEMAND_INTERVAL: Final = 30.0
_DEMAND_BACKOFF: Final = 3.0


class Rotate(msgspec.Struct, frozen=True):
    """Decision: rotate now."""

    reason: Literal["first", "due", "demanded", "forced", "retry", "clock"]


class Wait(msgspec.Struct, frozen=True):
    """Decision: do not rotate. ``until`` is epoch seconds, or ``None`` if only a person can end the wait."""

    reason: Literal["not_due"] | FailureKind
    until: float | None


Decision = Rotate | Wait


def decide(
    grant: Grant,
    now: Moment,
    *,
    demanded: bool = False,
    force: bool = False,
    horizon: float = 0.0,
    renewed: bool = False,
) -> Decision:
    """Decide whether to rotate ``grant`` at ``now``; the first rule that applies decides.

    1. A rejected grant waits for a person, or for the time of its next attempt. ``force`` (from a person) tries it once
       more, and so does ``renewed``: another grant that it needs has a new token.
    2. A refresh token whose ``nbf`` is in the future waits for it.
    3. A grant in doubt waits while a second use of its refresh token could revoke a valid access token (I1). ``force``
       does not skip this wait.
    4. ``force`` rotates.
    5. After a failure: wait for the end of the backoff. A demand can shorten it; ``renewed`` ends it.
    6. Without an access token, or with one that was issued in the future: rotate.
    7. ``demanded`` (an agent reports that the token of this generation is refused) rotates, and so does ``renewed``.
    8. Rotate when the access token is due. ``horizon``: seconds to the caller's next run; nobody else rotates before,
       so a grant that becomes due within it is rotated now.
    """
    if grant.dead and not force and not renewed:
        return _after_rejection(grant, now)
    if grant.not_before is not None and (seconds := seconds_until_usable(grant, now)) > 0:
        # Servers that set nbf may end the whole login if the token is used earlier (rauthy does).
        return Wait("too_early", now.wall + seconds)
    if (protected := protected_until(grant, now, demanded=demanded)) is not None:
        return Wait("reauthorization_required" if grant.dead else "in_doubt", protected)
    if force:
        return Rotate("forced")
    if grant.failure is not None:
        return Rotate("retry") if renewed else _after_failure(grant, grant.failure, now, demanded=demanded)
    if grant.access_token is None:
        return Rotate("first")
    if grant.issued_at > now.wall + CLOCK_TOLERANCE:
        return Rotate("clock")
    # If the clock was set back since the last rotation, a wait from then would be too long.
    set_back = grant.last_rotation_at is not None and grant.last_rotation_at > now.wall + _MIN_INTERVAL
    if demanded and (now.wall >= _demand_allowed_at(grant) or set_back):
        return Rotate("demanded")
    if renewed:
        earliest = _earliest_next(grant)
        return Rotate("due") if now.wall >= earliest or set_back else Wait("not_due", earliest)
    due = min(due_at(grant), now.wall + _seconds_until_refresh_due(grant, now))
    # If the server refuses an early refresh, a late run is better than a useless request.
    if now.wall >= due or (
        now.wall >= max(due - horizon, _earliest_next(grant)) and not server_behavior.refuses_early(grant)
    ):
        return Rotate("due")
    return Wait("not_due", min(due, _demand_allowed_at(grant)) if demanded else due)


def due_at(grant: Grant) -> float:
    """Return the epoch second of the scheduled rotation: after 75 % of the lifetime, minus jitter, at least daily.

    Later if a rotation revokes the access token that agents use; at the expiry if the server refuses an earlier one.
    In any case after 75 % of the life of the refresh token: an early request costs a refusal, a late one the login. A
    token that was made from that of another grant is due when that grant is.
    """
    lifetime = _lifetime(grant)
    if server_behavior.refuses_early(grant):
        wait = lifetime
    else:
        fraction = _DUE_FRACTION_IF_REVOKED if server_behavior.revokes_access_token(grant) else _DUE_FRACTION
        wait = min(fraction * lifetime, _DAY) - _jitter(grant, lifetime)
    wait = min(wait, _refresh_token_wait(grant))
    due = grant.issued_at + wait
    if grant.assertion is not None and (source_due_at := grant.assertion.source_due_at) is not None:
        # Later than its source by the jitter, so that those of one source do not ask all at once.
        due = min(due, source_due_at + _jitter(grant, lifetime))
    return max(due, _not_before(grant), _earliest_next(grant))


def has_access_token(grant: Grant) -> bool:
    """Whether agents have an access token; after a restored backup it is in the token file, not in the record."""
    return grant.access_token is not None or (grant.doubt is not None and grant.doubt.restored)


def expected_expiry(grant: Grant) -> float:
    """Return the epoch second at which the access token expires, from the server's answer or its maximum age."""
    return grant.issued_at + _lifetime(grant)


def remaining_lifetime(grant: Grant, at: Moment) -> float:
    """Return the seconds for which the access token is valid after ``at``; negative if it has expired.

    The server's clock decides about the expiry. So the elapsed time counts, not the time to which a clock was set.
    """
    age = _access_token_age(grant, at)
    if age is not None:
        return _lifetime(grant) - age
    # If the clock was set back since the issue, the difference would exceed the lifetime.
    return min(expected_expiry(grant) - at.wall, _lifetime(grant))


def may_be_too_early(grant: Grant, sent: Moment) -> bool:
    """Whether a rejection of a request sent at ``sent`` may only mean that the access token is still valid.

    That is so for servers that refuse an early refresh, up to a tolerance after the expiry: the server counts the
    lifetime from its own answer.
    """
    before = grant.failure
    asked = before.moment if before is not None and before.outcome == "too_early" else None
    if asked is not None and asked.same_boot(sent) and asked.seconds_until(sent) >= _lifetime(grant):
        return False  # the token that was valid at the first refusal has expired, also if the wall clock differs
    return server_behavior.refuses_early(grant) and remaining_lifetime(grant, sent) > -CLOCK_TOLERANCE


def seconds_until_usable(grant: Grant, now: Moment) -> float:
    """Return the seconds until the refresh token may be used, by its ``nbf``; 0 or less if it may be used now."""
    usable, age = _not_before(grant), _access_token_age(grant, now)
    return usable - now.wall if age is None or grant.issued is None else usable - grant.issued.wall - age


def backoff(grant: Grant, failures: int) -> float:
    """Return the seconds to wait after ``failures`` failures in a row: 10 s doubling to 5 min, +-50 %."""
    # The exponent is clamped before the power: mcpproxy-go#310 overflowed here and retried 23 million times.
    base = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 5))
    return base * (0.5 + _stable_fraction(f"{grant.name}\0{grant.generation}\0{failures}"))


def retry_at(grant: Grant) -> float | None:
    """Return when the last failure is retried, as far as that is known without a clock; ``None``: not automatically."""
    if grant.failure is None or grant.failure.retry_at is None:
        return None
    if (
        grant.doubt is None
        or not has_access_token(grant)
        or (server_behavior.grace_period(grant) != 0 and not grant.doubt.replay_over)
    ):
        return grant.failure.retry_at
    since = grant.doubt.since
    return max(grant.failure.retry_at, since.wall + remaining_lifetime(grant, since))


def replay_allowed(grant: Grant, now: Moment) -> bool:
    """Whether the server accepts the refresh token in doubt once more at ``now``, as far as that is known."""
    grace_period = server_behavior.grace_period(grant)
    if grace_period is None:
        return True
    if grant.doubt is None:
        return grace_period > 0
    # After a reboot the elapsed time is unknown, so the grace period counts as over. The request needs some of it.
    since = grant.doubt.since
    usable = grace_period - min(_TRANSIT_TIME, grace_period / 10)
    passed = max(now.wall - since.wall, now.monotonic - since.monotonic, now.boottime - since.boottime)
    return not grant.doubt.replay_over and since.same_boot(now) and passed < usable


def doubt_in_future(grant: Grant, now: Moment) -> bool:
    """Whether a doubt begins in the future by the clock that counts, so that its age is unknown.

    The holder of the lock then restarts the doubt at ``now``: the wait ends when the token has expired.
    """
    # Within one boot, that is a restored snapshot or another time namespace.
    return grant.doubt is not None and grant.doubt.since.seconds_until(now) < -CLOCK_TOLERANCE


def needs_person(grant: Grant) -> bool:
    """Whether a person should act: the grant is rejected, or was refused ten times in a row; twice if the server forgot
    the client.

    In the last two cases refresher still retries, because some servers refuse for hours and then accept.
    """
    return grant.dead or grant.refusals >= (_PERSON_AFTER_FORGOTTEN if is_forgotten(grant) else _PERSON_AFTER_REFUSALS)


def is_forgotten(grant: Grant) -> bool:
    """Whether the server does not know a client that refresher registered: a login registers a new one."""
    failure = grant.failure
    is_unknown = failure is not None and (failure.outcome, failure.code) == ("client_rejected", "invalid_client")
    return is_unknown and grant.login is not None and grant.login.client == "registered"


def protected_until(grant: Grant, now: Moment, *, demanded: bool) -> float | None:
    """Return until when the refresh token of a grant in doubt must not be sent (I1); ``None`` if it may be sent now.

    A second use of a refresh token can revoke the valid access token. A demand means that there is no valid one.
    """
    if grant.doubt is None or not has_access_token(grant) or demanded or replay_allowed(grant, now):
        return None
    remaining = remaining_lifetime(grant, now)
    if _access_token_age(grant, now) is None:
        since = grant.doubt.since
        remaining = remaining_lifetime(grant, since) - max(since.seconds_until(now), 0.0)
    return now.wall + remaining if remaining > 0 else None


def _after_rejection(grant: Grant, now: Moment) -> Decision:
    """Return the decision about a rejected grant; a demand does not change it."""
    failure = grant.failure
    if failure is None or failure.retry_at is None:
        return Wait("reauthorization_required", None)
    remaining = _seconds_until_retry(failure, failure.retry_at, now)
    if 0 < remaining <= _DAY + CLOCK_TOLERANCE:
        return Wait("reauthorization_required", now.wall + remaining)
    return Rotate("retry")


def _seconds_until_retry(failure: Failure, retry_at: float, now: Moment) -> float:
    if failure.moment is None or not failure.moment.same_boot(now):
        return retry_at - now.wall
    # By the boot clock: if the wall clock was set back by half an hour, a wait of ten seconds would grow by that.
    return retry_at - failure.at - max(now.boottime - failure.moment.boottime, 0.0)


def _after_failure(grant: Grant, failure: Failure, now: Moment, *, demanded: bool) -> Decision:
    if failure.retry_at is None:
        return Rotate("retry")
    if demanded and failure.outcome == "too_early" and now.wall >= failure.at + backoff(grant, grant.failures):
        return Rotate("demanded")  # agents report that the access token is not valid: there is no expiry to wait for
    longest = max(_lifetime(grant), MAX_WAIT) if failure.outcome == "too_early" else MAX_WAIT
    remaining = _seconds_until_retry(failure, failure.retry_at, now)
    undisputed = grant.doubt is None and grant.refusals == 0 and failure.outcome == "transient"
    if demanded and undisputed and failure.busy_until is None and not failure.provider_busy:
        # The agents have no valid token and wait: an ordinary backoff would be too long for one 503.
        shortened = _DEMAND_BACKOFF ** min(max(grant.failures - 1, 0), 8)
        remaining += min(shortened - (failure.retry_at - failure.at), 0.0)
    # A longer wait than the maximum comes from a clock that was set back since.
    if 0 < remaining <= longest:
        return Wait("in_doubt" if grant.doubt is not None else failure.outcome, now.wall + remaining)
    return Rotate("retry")


def _demand_allowed_at(grant: Grant) -> float:
    """Return when a demand is followed: at once, but later each time if demanded rotations do not help."""
    if grant.demanded == 0 or grant.last_rotation_at is None:
        return _earliest_next(grant)
    interval = _DEMAND_INTERVAL * 2.0 ** min(grant.demanded - 1, 20)
    return grant.last_rotation_at + max(_MIN_INTERVAL, min(interval, _lifetime(grant) / 4))


def _not_before(grant: Grant) -> float:
    """Return from when the refresh token may be used, by its ``nbf``; a time more than a day away is ignored."""
    if grant.not_before is None or grant.not_before - max(grant.issued_at, grant.authorized_at) > _DAY:
        return float("-inf")
    return grant.not_before


def _earliest_next(grant: Grant) -> float:
    return float("-inf") if grant.last_rotation_at is None else grant.last_rotation_at + _MIN_INTERVAL


def _access_token_age(grant: Grant, at: Moment) -> float | None:
    """Return the seconds since the access token was issued, by the boot clock; ``None`` if that cannot tell."""
    issued = grant.issued
    if issued is None or not issued.same_boot(at) or (age := issued.seconds_until(at)) < -CLOCK_TOLERANCE:
        return None  # the last condition: a restored snapshot, or another time namespace
    return max(age, 0.0)


def _refresh_token_wait(grant: Grant) -> float:
    """Return the seconds after the last answer from which the end of the refresh token makes a rotation due."""
    life = refresh_life.counted_life(grant)
    return math.inf if life is None else _DUE_FRACTION * life - _jitter(grant, life)


def _seconds_until_refresh_due(grant: Grant, now: Moment) -> float:
    """Return the seconds until the refresh token makes a rotation due.

    By the boot clock: if the wall clock was set back, the refresh token would end before its rotation is due.
    """
    return max(_refresh_token_wait(grant), _MIN_INTERVAL) - refresh_life.since_issue(grant, now)


def _jitter(grant: Grant, period: float) -> float:
    return _stable_fraction(f"{grant.name}\0{grant.generation}") * min(_MAX_JITTER, _JITTER_FRACTION * period)


def _lifetime(grant: Grant) -> float:
    if grant.expires_at is None:
        known = server_behavior.access_token_lifetime(grant)
        return DEFAULT_MAX_AGE if known is None else known
    return max(grant.expires_at - grant.issued_at, 0.0)


def _stable_fraction(text: str) -> float:
    """Return a number in [0, 1) that is the same in every process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
