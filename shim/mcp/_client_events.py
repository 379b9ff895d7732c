"""What a reconnecting client tells of itself."""

import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

import anyio

__all__ = ["Happening", "Happenings", "What"]

What = Literal["connected", "reconnecting", "rotated", "reauthorization_required", "restored", "gave_up"]

_KEPT = 256


class Happening(NamedTuple):
    """One thing that happened, and why; the reason is for a person, and holds no secret."""

    what: What
    reason: str


class Happenings:
    """Tells every listener everything from when it began to listen; a slow one loses the oldest."""

    def __init__(self) -> None:
        # Whoever stops listening is forgotten.
        self._listeners: weakref.WeakSet[_Listener] = weakref.WeakSet()
        self._ended = False

    def tell(self, what: What, reason: str) -> None:
        """Tell all who listen."""
        for listener in list(self._listeners):
            listener.hear(Happening(what, reason))

    def end(self) -> None:
        """Say that nothing more will happen."""
        self._ended = True
        for listener in list(self._listeners):
            listener.hear(None)

    def listen(self) -> AsyncIterator[Happening]:
        """Return what happens from now on."""
        listener = _Listener()
        self._listeners.add(listener)
        if self._ended:
            listener.hear(None)
        return listener


class _Listener(AsyncIterator[Happening]):
    def __init__(self) -> None:
        self._heard: deque[Happening] = deque(maxlen=_KEPT)
        self._ended = False
        self._news = anyio.Event()

    def hear(self, happening: Happening | None) -> None:
        if happening is None:
            self._ended = True
        else:
            self._heard.append(happening)
        self._news.set()

    async def __anext__(self) -> Happening:
        while not self._heard:
            if self._ended:
                raise StopAsyncIteration
            if self._news.is_set():
                self._news = anyio.Event()  # one for all who wait
            await self._news.wait()
        return self._heard.popleft()
