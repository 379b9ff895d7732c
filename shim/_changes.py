"""The events of a token, on which a program reconnects."""

import time
from collections.abc import Callable
from typing import NamedTuple

from shim._token import TokenFile
from shim.errors import ReauthorizationRequired, Removed

__all__ = ["Changes", "Event", "Restored", "Rotated", "permanent_error"]


class Rotated(NamedTuple):
    """A newer token is published; requests use it automatically."""

    name: str
    generation: int


class Restored(NamedTuple):
    """A token is available for the first time, or again after a new login."""

    name: str
    generation: int


Event = Rotated | Restored | ReauthorizationRequired | Removed


class Changes:
    """An endless iterator over the events of a token, for ``for`` and ``async for``.

    Each iterator yields every change once. If the grant was removed or needs a new login at the start, that is the
    first event. A change that is undone between two polls is not seen.
    """

    def __init__(self, current: Callable[[], TokenFile | None], poll: float) -> None:
        self._current = current
        self._poll = poll
        token = current()
        # If the grant has a permanent error, the first poll yields it.
        self._last = None if token is None or permanent_error(token) else token

    def __iter__(self) -> "Changes":
        """Iterate with ``for``, which blocks between events."""
        return self

    def __aiter__(self) -> "Changes":
        """Iterate with ``async for``, on any event loop that anyio supports."""
        return self

    def __next__(self) -> Event:
        """Wait for the next event."""
        while (event := self.poll()) is None:
            time.sleep(self._poll)
        return event

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        import anyio

        while (event := self.poll()) is None:
            await anyio.sleep(self._poll)
        return event

    def poll(self) -> Event | None:
        """Return the next event, or ``None`` if there is none yet. Does not wait."""
        before, token = self._last, self._current()
        self._last = token
        state = _state_of(token)
        if token is None or state is None:
            return None
        if before is None or state != _state_of(before):
            return permanent_error(token) or Restored(token.name, token.generation)
        if state == "available" and token.generation != before.generation:
            return Rotated(token.name, token.generation)
        return None


def permanent_error(token: TokenFile) -> ReauthorizationRequired | Removed | None:
    """Return the error if the grant of ``token`` was removed or needs a new login, else ``None``."""
    if token.state == "removed":
        return Removed(token.name)
    if token.state != "reauthorization_required":
        return None
    error = token.error
    return ReauthorizationRequired(
        token.name,
        code="invalid_grant" if error is None else error.code,
        description="the server refused the grant" if error is None else error.description,
        server=token.origins[0],
    )


def _state_of(token: TokenFile | None) -> str | None:
    """Return the state of a grant that has a permanent error, else "available" if there is a token, else ``None``."""
    if token is not None and permanent_error(token) is not None:
        return token.state
    return None if token is None or token.access_token is None else "available"
