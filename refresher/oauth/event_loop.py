"""The event loop of one request: its deadline counts only running time, and also limits name resolution.

asyncio resolves names in a thread pool and waits for the pool at the end: a resolver that hangs would hold the lock of
a grant beyond the deadline. And when a process continues after a stop (Ctrl-Z, a debugger, a paused machine), an
ordinary deadline has passed: the loop would drop the answer in the socket unread, perhaps the only copy of a refresh
token.
"""

import asyncio
import socket
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

__all__ = ["RequestLoop"]

_TICK: Final = 0.5
_STOP_THRESHOLD: Final = 2.0


class RequestLoop(asyncio.SelectorEventLoop):
    """A selector loop whose clock, and so every timeout, counts only the time in which the process runs."""

    def __init__(self) -> None:
        self._seen = time.monotonic()
        self._missed = 0.0
        super().__init__()
        self._tick()

    def time(self) -> float:
        """Return monotonic seconds without the time in which the process did not run."""
        now = time.monotonic()
        if now - self._seen > _STOP_THRESHOLD:
            self._missed += now - self._seen
        self._seen = now
        return now - self._missed

    def _tick(self) -> None:
        # A loop that wakes up twice a second recognises a stop by a longer gap.
        self.call_later(_TICK, self._tick)

    async def getaddrinfo(self, *host_and_port: Any, **options: Any) -> Any:
        """Resolve like ``socket.getaddrinfo``, in a thread that the end of the loop does not wait for."""
        resolved: Future[Any] = Future()
        resolved.set_running_or_notify_cancel()  # from here on nobody can cancel it, so the thread can always set it

        def resolve() -> None:
            try:
                resolved.set_result(socket.getaddrinfo(*host_and_port, **options))
            except (OSError, UnicodeError, ValueError) as error:
                resolved.set_exception(error)

        threading.Thread(target=resolve, daemon=True, name="resolver").start()
        return await asyncio.wrap_future(resolved)
