"""When to rotate: a pure function of the grant, a pending demand and the time (I9).

Cron and daemon ask the same question and get the same answer; jitter comes from the name and the generation, so
every process computes the same instant.
"""

import hashlib
from typing import Final, Literal

import msgspec

from refresher.common.clocks import Moment, elapsed
from refresher.grants import server_behavior
from refresher.grants.record import Failure, Grant, Waiting

__all__ = [
    "CLOCK_TOLERANCE",
    "DEFAULT_MAX_AGE",
    "MAX_WAIT",
    "Decision",
    "Rest",
    "Rotate",
    "backoff",
    "decide",
    "due_at",
    "end_of_life",
    "is_adrift",
    "is_early",
    "life_left",
    "may_send",
    "needs_person",
    "replay_open",
    "retry_at",
    "unusable_for",
]

DEFAULT_MAX_AGE: Final = 3600.0
"""Seconds after which an access token of unknown lifetime counts as old."""

CLOCK_TOLERANCE: Final = 60.0
"""Seconds by which clocks may differ, of two machines or of one before and after it was set."""

MAX_WAIT: Final = 3600.0
"""No backoff is longer, whatever ``Retry-After`` says."""

_SHARE_OF_LIFE: Final = 0.75
_SHARE_WHERE_IT_ENDS: Final = 0.9
_REFUSALS_FOR_A_PERSON: Final = 10
_DAILY: Final = 86400.0
_LONGEST_JITTER: Final = 60.0
_JITTER_SHARE: Final = 0.05
_SHORTEST: Final = 1.0
_ON_THE_WAY: Final = 1.0
_FIRST_BACKOFF: Final = 10.0
_LAST_BACKOFF: Final = 300.0
_DEMAND_STEP: Final = 30.0
_HURRIED_STEP: Final = 3.0


class Rotate(msgspec.Struct, frozen=True):
    """Exchange now; ``why`` in one word."""

    why: Literal["first", "due", "demanded", "forced", "retry", "clock"]


class Rest(msgspec.Struct, frozen=True):
    """Do not exchange; ``until`` is epoch seconds, ``None`` where only a person can end it."""

    because: Literal["not_due"] | Waiting
    until: float | None


Decision = Rotate | Rest


def decide(grant: Grant, now: Moment, *, demanded: bool = False, force: bool = False, horizon: float = 0.0) -> Decision:
    """Say what to do with ``grant`` at ``now``.

    ``demanded``: an agent had the token of this very generation refused. ``force``: a person asks; it skips backoff
    and schedule and tries a dead grant once more, but never the wait of a grant in doubt. ``horizon``: seconds to the
    caller's next run, within which nobody else would rotate.
    """
    if grant.dead and not force:
        return Rest("reauthorization_required", None)
    if grant.not_before is not None and (unusable := unusable_for(grant, now)) > 0:
        # Whoever writes that into a refresh token may end the whole login for using it earlier (rauthy does).
        return Rest("too_early", now.wall + unusable)
    if (protected := _protected_until(grant, now, demanded=demanded)) is not None:
        return Rest("reauthorization_required" if grant.dead else "in_doubt", protected)
    if force:
        return Rotate("forced")
    if grant.failure is not None:
        return _after_failure(grant, now, demanded=demanded)
    if grant.access_token is None:
        return Rotate("first")
    if _in_future(grant.issued_at, now):
        return Rotate("clock")
    if demanded and (now.wall >= _demand_honoured_at(grant) or _is_set_back(grant, now)):
        return Rotate("demanded")
    due = due_at(grant)
    # Where an early refresh is refused, a run that comes late is better than one that asks in vain.
    if now.wall >= due or (
        now.wall >= max(due - horizon, _earliest(grant)) and not server_behavior.refuses_early(grant)
    ):
        return Rotate("due")
    return Rest("not_due", min(due, _demand_honoured_at(grant)) if demanded else due)


def due_at(grant: Grant) -> float:
    """Return the epoch second of the scheduled rotation: 75 % of the lifetime, minus jitter, at least daily.

    Later where a rotation ends the token that agents are using, and at the end where an earlier one would be refused.
    """
    life = _lifetime(grant)
    if server_behavior.refuses_early(grant):
        return max(grant.issued_at + life, _usable_from(grant), _earliest(grant))
    share = _SHARE_WHERE_IT_ENDS if server_behavior.ends_access(grant) else _SHARE_OF_LIFE
    jitter = _fraction(f"{grant.name}\0{grant.generation}") * min(_LONGEST_JITTER, _JITTER_SHARE * life)
    return max(grant.issued_at + min(share * life, _DAILY) - jitter, _usable_from(grant), _earliest(grant))


def end_of_life(grant: Grant) -> float:
    """Return the epoch second until which the access token may live, by what the server said or by its age."""
    return grant.issued_at + _lifetime(grant)


def life_left(grant: Grant, at: Moment) -> float:
    """Return the seconds that the access token had still to live at a moment; less than 0: it had ended.

    It ends by the server's clock, so what counts is how long it has been, not what a wall clock was set to.
    """
    age = _age(grant, at)
    if age is not None:
        return _lifetime(grant) - age
    # Nothing lives longer than its lifetime, though a clock set back since its issue would make it seem so.
    return min(end_of_life(grant) - at.wall, _lifetime(grant))


def is_early(grant: Grant, asked: Moment) -> bool:
    """Whether a verdict may only mean that it was asked too early: by a server that does so, of a token that may live.

    Until its own clock agrees that the token has ended: the server counts from when it answered.
    """
    before = grant.failure
    if before is not None and before.outcome == "too_early" and before.moment is not None:
        lasted = asked.boottime - before.moment.boottime
        if before.moment.same_boot(asked) and lasted >= _lifetime(grant):
            return False  # what lived when it was refused has ended, whatever a clock was set back to
    return server_behavior.refuses_early(grant) and life_left(grant, asked) > -CLOCK_TOLERANCE


def unusable_for(grant: Grant, now: Moment) -> float:
    """Return the seconds until the refresh token may be used by what it says itself; 0 or less: it may."""
    usable, age = _usable_from(grant), _age(grant, now)
    return usable - now.wall if age is None or grant.issued is None else usable - grant.issued.wall - age


def backoff(grant: Grant, failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: 10 s doubling to 5 min, +-50 %."""
    # The exponent is clamped before the power: an overflow here once became 23 million retries elsewhere.
    base = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 5))
    return base * (0.5 + _fraction(f"{grant.name}\0{grant.generation}\0{failures}"))


def retry_at(grant: Grant) -> float | None:
    """Return when the last failure is followed up, as far as it can be told without a clock; ``None``: by a person."""
    if grant.failure is None or grant.failure.retry_at is None:
        return None
    if (
        grant.doubt is None
        or grant.access_token is None
        or (server_behavior.replay(grant) != 0 and not grant.doubt.replay_over)
    ):
        return grant.failure.retry_at
    return max(grant.failure.retry_at, grant.doubt.since.wall + life_left(grant, grant.doubt.since))


def replay_open(grant: Grant, now: Moment) -> bool:
    """Whether the server takes the refresh token in doubt once more, as far as can be known."""
    replay = server_behavior.replay(grant)
    if replay is None:
        return True
    if grant.doubt is None:
        return replay > 0
    # In another boot nobody knows how long it was: a grace is then over. A little of it goes to the way there.
    since = grant.doubt.since
    usable = replay - min(_ON_THE_WAY, replay / 10)
    return not grant.doubt.replay_over and since.same_boot(now) and elapsed(since, now) < usable


def is_adrift(grant: Grant, now: Moment) -> bool:
    """Whether a doubt lies in the future by the clock that counts, so that nobody can tell how long it has lasted.

    Whoever holds the lock then begins it anew at ``now``: the wait stays as long as the token can live, and ends.
    """
    if grant.doubt is None:
        return False
    since = grant.doubt.since
    if since.same_boot(now):
        return since.boottime > now.boottime + CLOCK_TOLERANCE  # a restored snapshot, another time namespace
    return _in_future(since.wall, now)


def needs_person(grant: Grant) -> bool:
    """Whether only a person can help: the grant is dead, or has been refused so often that it will not mend itself.

    In the second case it is tried again all the same: some servers refuse for hours and then think better of it.
    """
    return grant.dead or grant.refusals >= _REFUSALS_FOR_A_PERSON


def may_send(grant: Grant, now: Moment, *, demanded: bool) -> bool:
    """Whether the refresh token may leave at this instant without endangering a live access token (I1)."""
    return _protected_until(grant, now, demanded=demanded) is None


def _protected_until(grant: Grant, now: Moment, *, demanded: bool) -> float | None:
    """Until when a grant in doubt must wait, so that a reuse cannot revoke its live access token; None: no longer."""
    if grant.doubt is None or grant.access_token is None or demanded or replay_open(grant, now):
        return None
    remaining = life_left(grant, now)
    if _age(grant, now) is None:
        # From the doubt on by the clock that also counts a suspended machine, and across boots, for want of it, by the
        # wall clock.
        since = grant.doubt.since
        lasted = now.boottime - since.boottime if since.same_boot(now) else now.wall - since.wall
        remaining = life_left(grant, since) - max(lasted, 0.0)
    return now.wall + remaining if remaining > 0 else None


def _after_failure(grant: Grant, now: Moment, *, demanded: bool) -> Decision:
    failure = grant.failure
    if failure is None or failure.retry_at is None:
        return Rotate("retry")
    if demanded and failure.outcome == "too_early" and now.wall >= failure.at + backoff(grant, grant.failures):
        return Rotate("demanded")  # agents say that the token is dead: nothing to wait for
    longest = max(_lifetime(grant), MAX_WAIT) if failure.outcome == "too_early" else MAX_WAIT
    remaining = failure.retry_at - now.wall
    if failure.moment is not None and failure.moment.same_boot(now):
        # By the clock that nobody sets: set back by half an hour, the other one would make that of ten seconds.
        remaining = failure.retry_at - failure.at - max(now.boottime - failure.moment.boottime, 0.0)
    if demanded and _is_hurried(grant, failure):
        # Agents have nothing left, and wait for seconds: fifteen of them would be too long for one 503.
        hurried = _HURRIED_STEP ** min(max(grant.failures - 1, 0), 8)
        remaining += min(hurried - (failure.retry_at - failure.at), 0.0)
    # A wait longer than its own maximum was written by a clock that has been set back since.
    if 0 < remaining <= longest:
        return Rest("in_doubt" if grant.doubt is not None else failure.outcome, now.wall + remaining)
    return Rotate("retry")


def _is_hurried(grant: Grant, failure: Failure) -> bool:
    """Whether a demand shortens the wait: nothing is in doubt, and the server has neither refused nor named a time."""
    settled = grant.doubt is None and grant.refusals == 0
    return settled and failure.outcome == "transient" and failure.busy_until is None


def _demand_honoured_at(grant: Grant) -> float:
    """From when a demand is honoured: at once, later and later where the demanded rotation's token is refused too."""
    if grant.demanded == 0 or grant.last_rotation_at is None:
        return _earliest(grant)
    step = _DEMAND_STEP * 2.0 ** min(grant.demanded - 1, 20)
    return grant.last_rotation_at + max(_SHORTEST, min(step, _lifetime(grant) / 4))


def _is_set_back(grant: Grant, now: Moment) -> bool:
    """Whether the clock was set back since the last rotation: a wait that counts from then would exceed its maximum."""
    return grant.last_rotation_at is not None and grant.last_rotation_at > now.wall + _SHORTEST


def _usable_from(grant: Grant) -> float:
    """From when the refresh token may be used by what it says itself, as far as that makes sense."""
    if grant.not_before is None or grant.not_before - max(grant.issued_at, grant.authorized_at) > _DAILY:
        return float("-inf")
    return grant.not_before


def _earliest(grant: Grant) -> float:
    return float("-inf") if grant.last_rotation_at is None else grant.last_rotation_at + _SHORTEST


def _age(grant: Grant, at: Moment) -> float | None:
    """Return the seconds since the access token was issued, by the clock that nobody sets; ``None``: it cannot tell."""
    issued = grant.issued
    if issued is None or not issued.same_boot(at) or issued.boottime > at.boottime + CLOCK_TOLERANCE:
        return None  # the last: a restored snapshot, another time namespace
    return max(at.boottime - issued.boottime, 0.0)


def _lifetime(grant: Grant) -> float:
    if grant.expires_at is None:
        known = server_behavior.access_life(grant)
        return DEFAULT_MAX_AGE if known is None else known
    return max(grant.expires_at - grant.issued_at, 0.0)


def _in_future(at: float, now: Moment) -> bool:
    return at > now.wall + CLOCK_TOLERANCE


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that every process derives alike."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
