"""Readiness: which grants had a valid published access token when they were last inspected."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec

from refresher.common import clocks, text
from refresher.grants import forecast, policy
from refresher.grants.record import Grant
from refresher.grants.token_file import state_of
from refresher.observers.metrics import ENDS_SOON
from refresher.operations.grant_report import INVALID
from shim._token import TokenFile

__all__ = ["Health", "Readiness"]

_MAX_NAMES: Final = 100

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Names = Annotated[
    tuple[Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")], ...],
    msgspec.Meta(max_length=_MAX_NAMES),
]

_Problem = Literal["reauthorization_required", "invalid_grant_file", "token_rejected", "failing"]


_NEED_PERSON: Final = ("reauthorization_required", INVALID)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The stable JSON of ``/healthz`` and ``/readyz``; each list has at most 100 names.

    The limits are checked when it is decoded: any program may answer in place of the daemon.
    """

    live: bool
    """The daemon is responsive."""
    ready: bool
    """It is live, no grant is ``waiting``, and not all tokens are missing because grants cannot be read."""
    grants: _Count
    fresh: _Count
    """How many grants have a valid published access token."""
    waiting: _Names
    """Grants without one that need no person."""
    reauthorization_required: _Names
    """Grants that need a new login, whether or not their last token is still valid."""
    invalid_grant_file: _Names
    """Grants whose records or published tokens cannot be read: they need a person too."""
    token_rejected: _Names = ()
    """Grants whose tokens a server refuses, although the authorization server renews them."""
    listening: bool | None = None
    """Whether the daemon serves at the address of --listen; ``None`` without one."""

    def summary(self) -> str:
        """Return one line for a person."""
        need_person = (*self.reauthorization_required, *self.invalid_grant_file)
        return (
            f"{self.fresh} of {self.grants} grant{'' if self.grants == 1 else 's'} fresh"
            + (f"; waiting for a token: {text.names(self.waiting)}" if self.waiting else "")
            + (f"; needs a person: {text.names(need_person)}" if need_person else "")
            + (f"; tokens refused: {text.names(self.token_rejected)}" if self.token_rejected else "")
            + ("; cannot listen on the address of --listen (the log says why)" if self.listening is False else "")
        )


class Readiness:
    """Remembers whether each grant has a valid published token.

    The daemon's thread writes it, and any thread may read it.
    """

    def __init__(self) -> None:
        # It needs no lock: each change and each copy of a dictionary is one step.
        # Until when the published token is valid, in monotonic seconds; and why the grant needs a person.
        self._states: dict[str, tuple[float, _Problem | None]] = {}
        # When a login or a client secret ends, in epoch seconds, only if that is soon: each grant is inspected daily.
        self._endings: dict[str, float] = {}
        self._complete = False
        self.on_unreadable: Callable[[str, str | None, str, str], None] = lambda *_: None
        """Called when a grant becomes ``invalid_grant_file`` or works again: its name, both states, and why."""

    def mark_complete(self) -> None:
        """Note that every grant has been inspected."""
        self._complete = True

    def update(self, grant: Grant, *, published: bool, unusable: bool = False) -> None:
        """Note the state of a grant; ``published``: the token file matches its record.

        ``unusable``: its last attempt found that its record, or a file beside it, cannot be opened.
        """
        left = policy.remaining_lifetime(grant, clocks.now()) if published and policy.has_access_token(grant) else 0.0
        problem: _Problem | None = None if state_of(grant) == "active" else "failing"
        if policy.needs_person(grant):
            problem = "reauthorization_required"
        elif grant.token_rejected is not None:
            problem = "token_rejected"
        self._set(grant.name, time.monotonic() + left, INVALID if unusable else problem)
        end = forecast.first_hard_end(forecast.ends_of(grant))
        if end is not None and end.at < clocks.now().wall + ENDS_SOON:
            self._endings[grant.name] = end.at
        else:
            self._endings.pop(grant.name, None)

    def update_copy(self, token: TokenFile) -> None:
        """Note the state of a grant whose record is in a database, by its token file on this host."""
        expires_at = token.issued_at + policy.DEFAULT_MAX_AGE if token.expires_at is None else token.expires_at
        left = expires_at - clocks.now().wall if token.access_token is not None else 0.0
        problem: _Problem | None = None if token.state == "active" else "failing"
        if token.state == "reauthorization_required":
            problem = "reauthorization_required"
        elif token.error is not None and token.error.code == "token_rejected":
            problem = "token_rejected"
        self._set(token.name, time.monotonic() + left, problem)

    def mark_unreadable(self, name: str, why: str = "") -> None:
        """Note that the record of ``name`` cannot be read; its published token stays valid."""
        valid_until, _ = self._states.get(name, (float("-inf"), None))
        self._set(name, valid_until, INVALID, why)

    def _set(self, name: str, valid_until: float, problem: _Problem | None, why: str = "") -> None:
        before = self.state(name)
        self._states[name] = (valid_until, problem)
        after = _state(problem)
        if before != after and (after == INVALID or (before == INVALID and after == "active")):
            self.on_unreadable(name, before, after, why)

    def state(self, name: str) -> str | None:
        """Return the state of a grant as ``status`` names it; ``None`` if it is not known."""
        found = self._states.get(name)
        return None if found is None else _state(found[1])

    def forget(self, name: str) -> None:
        """Note that the grant ``name`` does not exist."""
        self._states.pop(name, None)
        self._endings.pop(name, None)

    def knows(self, name: str) -> bool:
        """Whether there is a grant ``name``, as far as is known: all may exist before each has been inspected."""
        return name in self._states or not self._complete

    def most_urgent(self, most: int) -> tuple[list[str], Mapping[str, int]]:
        """Return the names of at most ``most`` grants, and how many grants there are in each published state.

        First those that need a person, then those that fail, then those whose login or client secret ends soon, then
        those whose token expires first.
        """
        states, endings = self._states.copy(), self._endings.copy()
        by_state = Counter(_state(problem) for _, problem in states.values())
        if len(states) <= most:
            return list(states), by_state

        def urgency(name: str) -> tuple[int, float]:
            valid_until, problem = states[name]
            if problem is not None:
                return (0 if problem in _NEED_PERSON else 1), valid_until
            return (2, endings[name]) if name in endings else (3, valid_until)

        return heapq.nsmallest(most, states, key=urgency), by_state

    def health(self, *, live: bool, listening: bool | None = None) -> Health:
        """Return the health now; ``live``: whether the daemon is responsive."""
        now = time.monotonic()
        # With 100,000 grants, only the few names that are shown are sorted: this runs every five seconds.
        states = self._states.copy().items()
        waiting = sorted(
            name for name, (valid_until, problem) in states if valid_until <= now and problem not in _NEED_PERSON
        )
        named: dict[_Problem | None, list[str]] = {}
        for name, (_, problem) in states:
            if problem is not None:
                named.setdefault(problem, []).append(name)
        rejected, dead, unreadable = (
            sorted(named.get(problem, ())) for problem in ("token_rejected", "reauthorization_required", INVALID)
        )
        fresh = sum(valid_until > now for _, (valid_until, _) in states)
        return Health(
            live=live,
            # A host that can open nothing serves no agent, although each grant needs a person.
            ready=live and self._complete and not waiting and (fresh > 0 or not 0 < len(unreadable) == len(states)),
            grants=len(states),
            fresh=fresh,
            waiting=tuple(waiting[:_MAX_NAMES]),
            reauthorization_required=tuple(dead[:_MAX_NAMES]),
            invalid_grant_file=tuple(unreadable[:_MAX_NAMES]),
            token_rejected=tuple(rejected[:_MAX_NAMES]),
            listening=listening,
        )


def _state(problem: _Problem | None) -> str:
    return "active" if problem is None else problem if problem in _NEED_PERSON else "failing"
