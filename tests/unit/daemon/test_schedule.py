"""The schedule of the daemon."""

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from refresher.daemon.schedule import Schedule


@pytest.fixture
def called() -> SimpleQueue[None]:
    """One item for each callback of ``schedule``."""
    return SimpleQueue()


@pytest.fixture
def schedule(called: SimpleQueue[None]) -> Iterator[Schedule]:
    """A schedule that runs."""
    made = Schedule(lambda: called.put(None))
    made.start()
    yield made
    made.stop()


def test_names_become_due_at_their_last_plan_and_once(schedule: Schedule, called: SimpleQueue[None]) -> None:
    """If it failed, a grant would be inspected too late, again and again, or after it was forgotten."""
    now = time.time()
    schedule.plan("late", now + 3600)
    schedule.plan("replaced", now - 1)
    schedule.plan("replaced", now + 3600)
    schedule.plan("canceled", now - 1)
    schedule.cancel("canceled")
    schedule.plan("second", now - 1)
    schedule.plan("first", now - 2)
    schedule.plan("first", now - 2)
    called.get(timeout=90)
    assert schedule.due() == ["first", "second"]
    assert schedule.due() == []
    assert schedule.planned_for("late") == now + 3600
    # A plan that is earlier than all others calls back too.
    schedule.plan("replaced", time.time())
    found: list[str] = []
    while not found:
        called.get(timeout=90)
        found = schedule.due()
    assert found == ["replaced"]


def test_plans_that_were_replaced_take_no_memory(schedule: Schedule) -> None:
    """If it failed, a daemon would grow with each rotation, for years."""
    for number in range(20_000):
        schedule.plan("linear", time.time() + 3600 + number)
    assert len(schedule._heap) < 2000


def test_a_stop_during_a_callback_prints_no_traceback() -> None:
    """If it failed, a clean stop would sometimes print a traceback that looks like a crash."""
    called, may_end = threading.Event(), threading.Event()

    def callback() -> None:
        called.set()
        may_end.wait(90)

    schedule = Schedule(callback)
    schedule.start()
    schedule.plan("linear", time.time())
    assert called.wait(90)
    # The callback must end during the stop. If the stop begins later than this, the test passes and proves nothing.
    threading.Timer(0.2, may_end.set).start()
    schedule.stop()  # pytest fails a test during which a thread raises
