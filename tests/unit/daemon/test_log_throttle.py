"""Which events of the daemon are repetitions."""

import time
from typing import Any

from refresher.daemon.log_throttle import EventThrottle
from refresher.operations.events import Event


def event(outcome: Any, kind: Any = "failed", name: str = "linear") -> Event:
    return Event(at=time.time(), name=name, kind=kind, outcome=outcome)


def test_a_fault_of_this_machine_that_repeats_is_one_event() -> None:
    """If it failed, a full disk would fill the history, or a fault that comes back would not be in it."""
    emitted: list[Event] = []
    emit = EventThrottle(emitted.append)
    for each in [
        *[event("storage_failed")] * 3,
        event("storage_failed", name="github"),
        event("lock_busy"),
        *[event("transient")] * 2,  # of a server: each attempt counts
        event("lock_busy"),
        event("rotated", "rotated"),
        event("lock_busy"),
    ]:
        emit(each)
    assert [each.outcome for each in emitted] == [
        *("storage_failed", "storage_failed", "lock_busy", "transient", "transient"),
        *("lock_busy", "rotated", "lock_busy"),
    ]
    emit.forget("linear")
    emit(event("lock_busy"))
    assert len(emitted) == 9
