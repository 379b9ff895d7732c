"""The event loop of one exchange: name resolution runs in a thread that a deadline can leave behind.

asyncio resolves names in a pool and waits for it when a loop ends: a resolver that hangs would hold a grant's lock far
beyond the deadline.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

__all__ = ["ExchangeLoop"]


class ExchangeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a resolver of its own."""

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
