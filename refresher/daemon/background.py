"""Runs blocking calls for an event loop, in a thread that nothing waits for at the end of the process."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

__all__ = ["Background", "Busy"]

_T = TypeVar("_T")

_LONGEST: Final = 8.0


class Busy(Exception):
    """No result in time: a call before it hangs, or this one does, or there is no thread."""


class Background:
    """Runs one call at a time; for one event loop."""

    def __init__(self) -> None:
        self._running: asyncio.Future[Any] | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return what ``call`` returns. Raises what it raises, and ``Busy``."""
        try:
            async with asyncio.timeout(_LONGEST):
                while (running := self._running) is not None:
                    await asyncio.wait((running,))
                return await asyncio.shield(self._start(call))
        except TimeoutError:
            raise Busy from None

    def _start(self, call: Callable[[], _T]) -> "asyncio.Future[_T]":
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_T] = loop.create_future()

        def settle(set_result: Callable[[Any], None], value: object) -> None:
            self._running = None
            set_result(value)

        def work() -> None:
            try:
                outcome: tuple[Callable[[Any], None], object] = result.set_result, call()
            except Exception as error:  # noqa: BLE001  it is raised where the result is awaited
                outcome = result.set_exception, error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        self._running = result
        try:
            threading.Thread(target=work, name="page", daemon=True).start()
        except RuntimeError:
            self._running = None
            raise Busy from None
        # Nobody may be left to take an exception.
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        return result
