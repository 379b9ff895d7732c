"""How long the refresh token and the login last, and when to warn of the end of a login or its client. Pure.

A server announces the life of a refresh token in its answers. Usually that life starts anew with each rotation. At
some servers it does not: then its end is the end of the login, and only a person can begin another.
"""

from typing import Final, Literal, NamedTuple

import msgspec

from refresher.common.clocks import Moment
from refresher.grants import server_behavior
from refresher.grants.outcome import TokensIssued
from refresher.grants.record import Grant

__all__ = [
    "EndWarning",
    "PersonEnd",
    "after_login",
    "after_rotation",
    "counted_life",
    "login_left",
    "next_end",
    "next_warning",
    "remaining",
    "since_issue",
]

_WARNINGS: Final = (7 * 86400.0, 86400.0, 3600.0)
"""Seconds before the end of a login or its client."""

_RENEWED_FRACTION: Final = 0.25
"""A life whose end moves by less than this part of the time since the last answer did not start anew."""

_TOO_SOON: Final = 30.0
_TOO_SOON_FRACTION: Final = 0.1
_SOONEST: Final = 5.0
_LAST_LIFE: Final = 60.0
_ROUNDING: Final = 1.0


class PersonEnd(NamedTuple):
    """An end that no rotation can move: that of the login, or of the client that was registered for it."""

    left: float
    """The seconds until then."""
    at: float
    kind: Literal["login", "client_secret"]


class EndWarning(NamedTuple):
    """The next warning of such an end."""

    seconds: float
    """Until it is due; 0: now."""
    ahead: float
    """How many seconds before the end it is due at the latest."""


def after_login(grant: Grant, life: float | None, sent: Moment) -> Grant:
    """Return ``grant`` of a new login or import; ``life``: the seconds of its refresh token, as far as announced."""
    if grant.refresh_token is None:
        return grant
    return _ending(grant, server_behavior.refresh_token_lifetime(grant) if life is None else life, None, sent)


def after_rotation(before: Grant, after: Grant, tokens: TokensIssued, sent: Moment) -> Grant:
    """Return ``after``, made from ``before`` with ``tokens``, with the ends that are known now.

    In doubt, a life started anew: to rotate earlier than necessary costs a request, to rotate too late costs the login.
    """
    if after.refresh_token is None:
        return after
    passed = since_issue(before, sent)
    earlier = remaining(before, sent)
    taken = tokens.refresh_token in (None, after.refresh_token)
    life = tokens.refresh_token_expires_in if taken else None
    if life is None:
        life = server_behavior.refresh_token_lifetime(after)
    if life is None and after.refresh_token == before.refresh_token and earlier is not None and earlier > 0:
        life = earlier
    if life is None or earlier is None:
        end = None
    elif passed < _soonest_judgement(earlier + passed):
        # Within a grace period, a server may return the same tokens again.
        end = login_left(before, sent)
    else:
        end = life if abs(life - earlier) < _RENEWED_FRACTION * passed else None
    return _ending(after, life, end, sent)


def counted_life(grant: Grant) -> float | None:
    """Return the seconds from the last answer to the end of the refresh token, if that end decides when to rotate.

    The end of a login decides too while more than a minute is left: if it is only taken for one, the login is kept, and
    otherwise agents get a last access token. Each such wait is a quarter of the one before, so there are few.
    """
    if grant.refresh_token is None or grant.refresh_token_expires_at is None:
        return None
    life = grant.refresh_token_expires_at - grant.issued_at
    is_last = grant.login_ends_at is not None and grant.refresh_token_expires_at > grant.login_ends_at - _ROUNDING
    return None if life <= 0 or (is_last and life < _LAST_LIFE) else life


def remaining(grant: Grant, at: Moment) -> float | None:
    """Return the seconds from ``at`` to the end of the refresh token; ``None`` if that is unknown."""
    end = grant.refresh_token_expires_at
    return None if end is None else _seconds_to(end, grant, at)


def login_left(grant: Grant, at: Moment) -> float | None:
    """Return the seconds from ``at`` to the end of the login; ``None`` if no end is known."""
    return None if grant.login_ends_at is None else _seconds_to(grant.login_ends_at, grant, at)


def next_end(grant: Grant, now: Moment) -> PersonEnd | None:
    """Return the first end after ``now`` that only a person can move; ``None`` if none is known."""
    client = None if grant.login is None else grant.login.client_expires_at
    ends: list[PersonEnd] = []
    if grant.login_ends_at is not None:
        ends.append(PersonEnd(_seconds_to(grant.login_ends_at, grant, now), grant.login_ends_at, "login"))
    if client is not None:
        ends.append(PersonEnd(_seconds_to(client, grant, now), client, "client_secret"))
    return min((end for end in ends if end.left > 0), default=None)


def next_warning(grant: Grant, now: Moment) -> EndWarning | None:
    """Return the next warning of ``next_end``; ``None`` if there is none any more, or no end is known.

    A warning that was missed is given late, but only the last one. A login that was shorter from its start than the
    time ahead gets no such warning.
    """
    end = next_end(grant, now)
    if end is None or grant.dead:
        return None
    before = min(float("inf") if grant.end_warned is None else grant.end_warned, end.at - grant.authorized_at)
    aheads = [ahead for ahead in _WARNINGS if ahead < before]
    if not aheads:
        return None
    missed = [ahead for ahead in aheads if end.left <= ahead]
    return EndWarning(0.0, missed[-1]) if missed else EndWarning(end.left - aheads[0], aheads[0])


def _ending(grant: Grant, life: float | None, end: float | None, sent: Moment) -> Grant:
    """Return ``grant`` whose refresh token ends after ``life`` seconds, and its login after ``end``."""
    total = server_behavior.login_lifetime(grant)
    if total is not None and grant.login is not None:  # nobody knows when an imported login began
        known = grant.authorized_at + total - sent.wall
        end = known if end is None else min(end, known)
    if end is not None and end <= 0:
        end = None  # the server has just issued tokens, so what was known was wrong
    ending = msgspec.structs.replace(
        grant,
        refresh_token_expires_at=None if life is None else sent.wall + life,
        login_ends_at=None if end is None else sent.wall + end,
    )
    # A later end than the one warned of has its own warnings.
    first, warned = next_end(ending, sent), grant.end_warned
    if first is None or warned is None or first.left <= warned:
        return ending
    return msgspec.structs.replace(ending, end_warned=None)


def _soonest_judgement(life: float) -> float:
    """Return the seconds between two answers from which their ends can be compared."""
    return min(_TOO_SOON, max(_SOONEST, _TOO_SOON_FRACTION * life))


def _seconds_to(end: float, grant: Grant, at: Moment) -> float:
    return end - grant.issued_at - since_issue(grant, at)


def since_issue(grant: Grant, at: Moment) -> float:
    """Return the seconds since the last answer, by the boot clock if it can tell."""
    issued = grant.issued
    if issued is not None and issued.same_boot(at) and (passed := issued.seconds_until(at)) >= 0:
        return passed
    return max(at.wall - grant.issued_at, 0.0)
