"""Events: what happened to a grant, as immutable records for observers.

An operation collects its events, and emits them after it has released the lock (``emitting``). Nothing depends on
them: a kill can lose the last ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

from refresher.common import clocks
from refresher.grants.record import Grant, Record
from refresher.grants.token_file import state_of
from refresher.operations.result import ResultCode

__all__ = [
    "Emit",
    "Event",
    "EventKind",
    "as_one",
    "change_of_state",
    "emitting",
    "happened",
    "ignore",
    "now_in",
    "recoveries",
]

EventKind = Literal[
    "demanded",
    "rotated",
    "failed",
    "published",
    "recovered",
    "state_changed",
    "login_ending",
    "logged_in",
    "imported",
    "removed",
    "moved",
]

_LONGEST_DETAIL: Final = 1000


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to the grant ``name``. It holds no secret."""

    at: float
    """Epoch seconds."""
    name: str
    kind: EventKind
    generation: int | None = None
    """The generation after it; of ``demanded``: the generation that an agent refused."""
    outcome: ResultCode | None = None
    """Of ``rotated`` and ``failed``."""
    state_before: str | None = None
    state: str | None = None
    """Of ``state_changed``: the states before and after it: published ones, or ``invalid_grant_file``."""
    detail: str = ""
    """A text for a person; at most 1,000 characters."""
    demanded: bool = False
    """Of ``rotated`` and ``failed``: an agent demanded the rotation."""
    exchange_seconds: float | None = None
    """The time of the exchange, if there was one."""
    lock_seconds: float | None = None
    """The time that it waited for the lock."""
    late_seconds: float | None = None
    """The time from when a scheduled rotation was due to its exchange."""
    program: str = ""
    """The command that it happened in, for example ``run-once``."""
    pid: int = 0


Emit = Callable[[Event], None]
"""Takes an event. It never waits and never raises."""


def ignore(_: Event) -> None:
    """Take an event and do nothing."""


@contextmanager
def emitting(emit: Emit) -> Iterator[list[Event]]:
    """Collect events, and emit them at the end, also if an error ends it. Open it before the lock is taken."""
    events: list[Event] = []
    try:
        yield events
    finally:
        for event in events:
            emit(event)


def recoveries(name: str, events: list[Event]) -> Callable[[str, int | None], None]:
    """Return what adds a finding of a recovery of ``name``, and the generation after it, to ``events``."""

    def add(finding: str, generation: int | None) -> None:
        events.append(happened(name, "recovered", finding, generation=generation))

    return add


def happened(
    name: str,
    kind: EventKind,
    detail: str = "",
    *,
    generation: int | None = None,
    outcome: ResultCode | None = None,
    demanded: bool = False,
    exchange_seconds: float | None = None,
    lock_seconds: float | None = None,
    late_seconds: float | None = None,
) -> Event:
    """Return the event that ``kind`` happened to ``name`` now."""
    return Event(
        at=clocks.now().wall,
        name=name,
        kind=kind,
        generation=generation,
        outcome=outcome,
        detail=detail[:_LONGEST_DETAIL],
        demanded=demanded,
        exchange_seconds=exchange_seconds,
        lock_seconds=lock_seconds,
        late_seconds=late_seconds,
    )


def change_of_state(before: Record | None, after: Grant) -> tuple[Event, ...]:
    """Return the event that the published state has changed, or nothing if it is the same, or the grant is new."""
    if not isinstance(before, Grant) or (was := state_of(before)) == (state := state_of(after)):
        return ()
    detail = "" if after.failure is None or state == "active" else after.failure.description
    return (now_in(after.name, was, state, detail, generation=after.generation),)


def as_one(failed: list[Event], later: list[Event]) -> list[Event]:
    """Return the events of a failed attempt and of a later one as those of one; only the first and last state count."""
    changes = [event for event in (*failed, *later) if event.kind == "state_changed"]
    told = [event for event in failed if event.kind not in ("failed", "state_changed")]
    told += [event for event in later if event.kind != "state_changed"]
    if changes and changes[0].state_before != changes[-1].state:
        told.append(msgspec.structs.replace(changes[-1], state_before=changes[0].state_before))
    return told


def now_in(name: str, was: str | None, state: str, detail: str = "", *, generation: int | None = None) -> Event:
    """Return the event that ``name`` went from the state ``was`` (``None``: it is not known) to ``state`` now."""
    return Event(
        at=clocks.now().wall,
        name=name,
        kind="state_changed",
        generation=generation,
        state_before=was,
        state=state,
        detail=detail[:_LONGEST_DETAIL],
    )
