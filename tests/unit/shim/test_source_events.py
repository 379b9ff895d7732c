"""``FileTokenSource.changes()``: the events of a token."""

import asyncio
import threading

from shim import (
    ReauthorizationRequired,
    Removed,
    Restored,
    Rotated,
)
from tests.support.published import DEAD, Published


def test_the_events_of_a_token_come_once_and_in_order(published: Published) -> None:
    """If it failed, a program would reconnect twice, or never."""
    changes = published.source().changes(poll=0.01)
    assert changes.poll() is None
    published.put(1)
    assert changes.poll() == Restored("linear", 1)
    assert changes.poll() is None
    published.put(2)
    assert next(changes) == Rotated("linear", 2)
    published.put(2, state="failing")
    assert changes.poll() is None, "a failed refresh with a live token is no event"
    published.put(2, state="reauthorization_required", error=DEAD)
    assert isinstance(changes.poll(), ReauthorizationRequired)
    assert changes.poll() is None
    published.put(3)
    assert changes.poll() == Restored("linear", 3)
    published.put(3, state="removed", access_token=None)
    assert isinstance(changes.poll(), Removed)
    published.put(4)
    assert changes.poll() == Restored("linear", 4)


def test_a_permanent_error_at_the_start_is_the_first_event(published: Published) -> None:
    """If it failed, a program that starts after the permanent error would never see it."""
    published.put(1, state="reauthorization_required", error=DEAD)
    changes = published.source().changes()
    assert isinstance(changes.poll(), ReauthorizationRequired)
    assert changes.poll() is None


def test_two_event_loops_can_await_events_of_one_source(published: Published) -> None:
    """If it failed, one source could not serve a program with several event loops."""
    published.put(1)
    source = published.source()
    received: list[object] = []

    async def listen() -> None:
        changes = source.changes(poll=0.01)
        ready.release()
        async for event in changes:
            received.append(event)
            return

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=lambda: asyncio.run(listen())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=90)
    published.put(2)
    for thread in threads:
        thread.join(90)
    assert received == [Rotated("linear", 2)] * 2
