"""The event loop of one exchange: a resolver that a deadline can leave behind, and a time that stops with the process.

asyncio resolves names in a pool and waits for it when a loop ends: a resolver that hangs would hold a grant's lock far
beyond the deadline. And a process that was stopped (Ctrl-Z, a debugger, a paused machine) finds its deadline long past
when it goes on: the answer that the kernel has kept for it, perhaps the only copy of a refresh token, would be thrown
away unread.
"""

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final

__all__ = ["ExchangeLoop"]

_TICK: Final = 0.5
_STOPPED: Final = 2.0


class ExchangeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a resolver of its own; its time, and so every time-out, counts only what it has lived."""

    def __init__(self) -> None:
        self._seen = time.monotonic()
        self._missed = 0.0
        super().__init__()
        self._tick()

    def time(self) -> float:
        """Return the loop's own seconds: monotonic ones, less those in which the process did not run."""
        now = time.monotonic()
        if now - self._seen > _STOPPED:
            self._missed += now - self._seen
        self._seen = now
        return now - self._missed

    def _tick(self) -> None:
        # A loop that wakes up twice a second can tell a stop from a wait.
        self.call_later(_TICK, self._tick)

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002  asyncio's own signature
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Resolve as ``socket.getaddrinfo`` does, without holding up the end of the loop."""
        answer: asyncio.Future[Any] = self.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)

        def look_up() -> None:
            result, problem = None, None
            try:
                result = socket.getaddrinfo(host, port, family, type, proto, flags)
            except (OSError, UnicodeError, ValueError) as error:
                problem = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self.call_soon_threadsafe(settle, result, problem)

        threading.Thread(target=look_up, daemon=True, name="resolver").start()
        return await answer
