"""The events of a token: what a program reconnects on."""

import time
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import ReauthorizationRequired, Removed

if TYPE_CHECKING:
    from shim._source import FileTokenSource

__all__ = ["Changes", "Event", "Restored", "Rotated"]


class Rotated(NamedTuple):
    """A newer token is published; requests use it by themselves."""

    name: str
    generation: int


class Restored(NamedTuple):
    """A token is there again, or for the first time: after a person has authorized anew, or a file has appeared."""

    name: str
    generation: int


Event = Rotated | Restored | ReauthorizationRequired | Removed

_GOOD = "good"
_ABSENT = "absent"


class Changes:
    """An endless iterator of events, sync and async; each iterator sees every lasting change once.

    It begins with what is: a grant that is dead or removed already is told at once. What comes and goes between two
    looks is not told.
    """

    def __init__(self, source: "FileTokenSource", poll: float) -> None:
        self._source = source
        self._poll = poll
        self._state, self._generation = self._look()
        self._told = self._state in (_GOOD, _ABSENT)

    def __iter__(self) -> "Changes":
        """Iterate with ``for``: it blocks between events."""
        return self

    def __aiter__(self) -> "Changes":
        """Iterate with ``async for``, on any event loop that anyio knows."""
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
        """Return the next event if there is one, without waiting."""
        before, generation, told = self._state, self._generation, self._told
        self._state, self._generation = self._look()
        self._told = True
        if self._state == before and told:
            rotated = self._state == _GOOD and self._generation != generation
            return Rotated(self._source.name, self._generation) if rotated else None
        if self._state == _GOOD:
            return Restored(self._source.name, self._generation)
        return self._bad_news()

    def _bad_news(self) -> Event | None:
        problem = self._source.problem()
        return problem if isinstance(problem, ReauthorizationRequired | Removed) else None

    def _look(self) -> tuple[str, int]:
        token = self._source.current()
        if token is None:
            return _ABSENT, -1
        if token.state in ("reauthorization_required", "removed"):
            return token.state, token.generation
        return (_GOOD if token.access_token is not None else _ABSENT), token.generation
