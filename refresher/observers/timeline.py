"""What happened, as lines for a person: equal events in a row become one line, and lost events are shown."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from refresher.operations.events import Event, EventKind

__all__ = ["Line", "lines", "one_line"]

_MADE: Final[tuple[EventKind, ...]] = ("rotated", "imported", "logged_in", "recovered")
"""The kinds that can begin a generation."""

_ASIDE: Final[tuple[EventKind, ...]] = ("state_changed", "login_ending")
"""The kinds that end no row of equal events."""

_FUTURE: Final = re.compile(r";? ?(next attempt|next rotation) in [^;]*")


class Line(msgspec.Struct, kw_only=True):
    """One line: ``count`` equal events of a grant, from ``at`` to ``until``."""

    at: float
    until: float
    name: str
    text: str = ""
    state: str | None = None
    """The state that begins with it, of a change of state."""
    alarming: bool = False
    """A person should see it."""
    count: int = 1
    first: int | None = None
    """The generation of the first of the events."""
    last: Event
    key: tuple[str, ...]


def lines(events: Iterable[Event]) -> list[Line]:
    """Return the lines of ``events``, in the order in which each begins."""
    events = sorted(events, key=lambda event: event.at)
    missing = _Missing(events)
    found: list[Line] = []
    rows: dict[str, Line] = {}
    for event in events:
        if (gap := missing.before(event)) is not None:
            found.append(gap)
            rows.pop(event.name, None)
        if event.kind == "demanded":
            continue  # the rotation or the publication that follows says it
        key = _key(event)
        row = rows.get(event.name)
        if row is not None and row.key == key:
            row.count, row.until, row.last = row.count + 1, event.at, event
            continue
        line = _line(event, key)
        found.append(line)
        if event.kind not in _ASIDE:
            rows[event.name] = line
    for line in found:
        line.text = line.text or _text(line)
    return found


def one_line(event: Event) -> Line:
    """Return the line of one event."""
    line = _line(event, _key(event))
    line.text = _text(line, whole=True)
    return line


class _Missing:
    """Finds generations that no event of a grant began."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._made = {(event.name, event.generation) for event in events if event.kind in _MADE}
        self._latest: dict[str, int] = {}

    def before(self, event: Event) -> Line | None:
        """Return the line that generations up to that of ``event`` are missing; ``None`` if there are all."""
        if event.generation is None or event.kind == "demanded":
            return None
        # Those of another store are in the histories there.
        known = event.kind != "moved"
        latest = self._latest.get(event.name, event.generation) if known else event.generation
        self._latest[event.name] = max(latest, event.generation)
        lost = [number for number in range(latest + 1, event.generation + 1) if (event.name, number) not in self._made]
        if not lost:
            return None
        return Line(
            at=event.at,
            until=event.at,
            name=event.name,
            text=f"no event of {_generations(lost[0], lost[-1])}: events were lost",
            alarming=True,
            last=event,
            key=("lost",),
        )


def _line(event: Event, key: tuple[str, ...]) -> Line:
    return Line(
        at=event.at,
        until=event.at,
        name=event.name,
        state=event.state,
        alarming=event.kind == "login_ending"
        or event.outcome == "invalid_grant_file"
        or (event.kind == "state_changed" and event.state != "active"),
        first=event.generation,
        last=event,
        key=key,
    )


def _key(event: Event) -> tuple[str, ...]:
    """Return what equal events in a row have in common."""
    if event.kind == "failed":
        # Times and counts differ between equal failures.
        return (event.kind, event.outcome or "", re.sub(r"\d+", "", _past(event.detail)))
    if event.kind in ("rotated", "published"):
        return (event.kind, event.outcome or "")
    return (event.kind, str(event.at), str(id(event)))


def _past(detail: str) -> str:
    return _FUTURE.sub("", detail).strip("; ")


def _text(line: Line, *, whole: bool = False) -> str:
    """Return what a line says; ``whole``: also what was to follow."""
    event = line.last
    detail = event.detail if whole else _past(event.detail)
    times = f" {line.count} times" if line.count > 1 else ""
    match event.kind:
        case "rotated":
            said = f"rotated{times}, {_generations(line.first or 0, event.generation or 0)}"
            if event.outcome != "rotated" and event.outcome is not None:
                return f"{said} ({event.outcome}): {detail}"
            return f"{said}: {detail}" if whole and detail else said
        case "failed":
            return f"failed{times} ({event.outcome}): {detail}"
        case "published":
            return f"published{times} again, generation {event.generation}"
        case "state_changed":
            return f"{event.state_before or 'unknown'} -> {event.state}" + (f": {detail}" if detail else "")
        case "demanded":
            return f"a token of generation {event.generation} was demanded: a server refused it, or it expired too soon"
        case "recovered":
            return f"recovered: {detail}"
        case "login_ending":
            return detail
        case "logged_in":
            return f"logged in, generation {event.generation}: {detail}"
        case "imported":
            return f"imported, generation {event.generation}: {detail}"
        case "removed":
            return f"removed: {detail}"
        case "moved":
            return f"moved: {detail}"


def _generations(first: int, last: int) -> str:
    return f"generation {last}" if first == last else f"generations {first} to {last}"
