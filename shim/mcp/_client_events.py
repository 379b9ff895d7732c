"""The events of a reconnecting client, and how its listeners receive them."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

import anyio

__all__ = ["ClientEvent", "EventBroadcast", "EventName", "Listener"]

EventName = Literal["connected", "reconnecting", "rotated", "reauthorization_required", "restored", "gave_up"]

_BUFFERED = 256


class ClientEvent(NamedTuple):
    """An event and its reason. The reason is text for a person, and contains no secret.

    ``shim.mcp.Happening`` is the older name of this class.
    """

    what: EventName
    reason: str


class EventBroadcast:
    """Sends each event to all listeners. A listener that is too slow loses the oldest events."""

    def __init__(self) -> None:
        self.latest: deque[ClientEvent] = deque(maxlen=_BUFFERED)
        self.count = 0
        """The number of all events so far."""
        self.is_closed = False
        self.changed = anyio.Event()

    def emit(self, what: EventName, reason: str) -> None:
        """Send an event to all listeners."""
        self.latest.append(ClientEvent(what, reason))
        self.count += 1
        self._notify()

    def close(self) -> None:
        """End the iteration of all listeners."""
        self.is_closed = True
        self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()


class Listener(AsyncIterator[ClientEvent]):
    """An iterator over the events from now on, which several tasks can share."""

    def __init__(self, events: EventBroadcast) -> None:
        self._events = events
        self._seen = events.count

    async def __anext__(self) -> ClientEvent:
        events = self._events
        while self._seen == events.count:
            if events.is_closed:
                raise StopAsyncIteration
            await events.changed.wait()
        self._seen = max(self._seen, events.count - len(events.latest)) + 1
        return events.latest[self._seen - events.count - 1]
