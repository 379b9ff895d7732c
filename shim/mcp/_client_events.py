"""The events of a reconnecting client, and how its listeners receive them."""

import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

import anyio

__all__ = ["ClientEvent", "EventBroadcast", "EventName"]

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
        # Weak references: a listener that is no longer used needs no unsubscribing.
        self._listeners: weakref.WeakSet[_Listener] = weakref.WeakSet()
        self._closed = False

    def emit(self, what: EventName, reason: str) -> None:
        """Send an event to all listeners."""
        for listener in list(self._listeners):
            listener.put(ClientEvent(what, reason))

    def close(self) -> None:
        """End the iteration of all listeners."""
        self._closed = True
        for listener in list(self._listeners):
            listener.put(None)

    def subscribe(self) -> AsyncIterator[ClientEvent]:
        """Return an iterator over the events from now on."""
        listener = _Listener()
        self._listeners.add(listener)
        if self._closed:
            listener.put(None)
        return listener


class _Listener(AsyncIterator[ClientEvent]):
    def __init__(self) -> None:
        self._events: deque[ClientEvent] = deque(maxlen=_BUFFERED)
        self._closed = False
        self._changed = anyio.Event()

    def put(self, event: ClientEvent | None) -> None:
        if event is None:
            self._closed = True
        else:
            self._events.append(event)
        self._changed.set()

    async def __anext__(self) -> ClientEvent:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            if self._changed.is_set():
                self._changed = anyio.Event()  # all tasks that iterate share it
            await self._changed.wait()
        return self._events.popleft()
