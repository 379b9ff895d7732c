"""How events become lines."""

from typing import Any

from refresher.observers.timeline import lines
from refresher.operations.events import Event, EventKind


def _event(at: float, kind: EventKind = "rotated", generation: int | None = None, **more: Any) -> Event:
    fields: dict[str, Any] = {"name": "linear", "outcome": "rotated" if kind == "rotated" else None}
    return Event(at=at, kind=kind, generation=generation, **(fields | more))


def _failed(at: float, detail: str, name: str = "linear") -> Event:
    return _event(at, "failed", 3, outcome="transient", detail=detail, name=name)


def _texts(*events: Event) -> list[str]:
    return [line.text for line in lines(events)]


def test_rotations_in_a_row_are_one_line() -> None:
    """If it failed, a night of a healthy grant would not fit on a screen."""
    rotations = [_event(number, generation=number) for number in range(13, 21)]
    other = _event(15, generation=2, name="notion")
    found = lines([*rotations, other, _event(16, "demanded", 15)])
    assert [line.text for line in found] == ["rotated 8 times, generations 13 to 20", "rotated, generation 2"]
    assert (found[0].at, found[0].until, found[0].count) == (13, 20, 8)


def test_equal_failures_are_one_line_beside_the_change_of_state() -> None:
    """If it failed, a server that is down for a night would fill the screen, or two causes would look like one."""
    events = [
        _failed(1, "the server answered 503; next attempt in 10 s"),
        _event(1, "state_changed", 3, state_before="active", state="failing", detail="the server answered 503"),
        _failed(2, "the server answered 503; next attempt in 2 min"),
        _failed(3, "connection refused; next attempt in 2 min"),
        _event(4, generation=4),
        _event(4, "state_changed", 4, state_before="failing", state="active"),
    ]
    found = lines(events)
    assert [line.text for line in found] == [
        "failed 2 times (transient): the server answered 503",
        "active -> failing: the server answered 503",
        "failed (transient): connection refused",
        "rotated, generation 4",
        "failing -> active",
    ]
    assert [line.alarming for line in found] == [False, True, False, False, False]


def test_a_gap_of_generations_is_shown() -> None:
    """If it failed, nobody would see that the history has lost events."""
    assert _texts(_event(1, generation=3), _event(2, generation=4), _event(3, generation=7)) == [
        "rotated 2 times, generations 3 to 4",
        "no event of generations 5 to 6: events were lost",
        "rotated, generation 7",
    ]
    assert "no event of generation 4: events were lost" in _texts(_event(1, generation=3), _event(2, "published", 4))


def test_what_is_no_gap_is_not_shown_as_one() -> None:
    """If it failed, a clock that was set, a recovery or a demand would look like lost events."""
    set_back = (_event(1, generation=3), _event(2, generation=5), _event(3, generation=4))
    recovered = (_event(4, "recovered", 6, detail="adopted"), _event(5, "demanded", 2), _event(6, "removed", 6))
    again = (_event(7, "imported", 7), _event(8, generation=8))
    assert not [text for text in _texts(*set_back, *recovered, *again) if "lost" in text]
