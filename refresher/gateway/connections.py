"""The connections of agents: bounded in number and in time. Those without a valid request give way to new ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from refresher.gateway.failures import Failure

__all__ = ["Connection", "Server", "accept"]

_HEAD: Final = 10.0
"""Seconds from the first byte of a request to the end of its headers."""

_INVALID: Final = Failure(400, "bad_request", "this is no valid HTTP/1.1 request, or its headers are too large")


class Connection(RequestHandler):
    """One connection of an agent."""

    __slots__ = ("_head", "_refuse", "accepted")

    def __init__(self, server: "Server", refuse: Callable[[Failure], web.Response], **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._refuse = refuse
        self._head: asyncio.Future[None] | None = None
        self.accepted = False
        """Whether it has sent a request that was allowed."""

    def waits(self) -> bool:
        """Whether there is no request at the moment, or no whole one."""
        return self._waiter is not None and not self._waiter.done()

    def drop(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read what has come, and limit the time for the rest of the headers."""
        super().data_received(data)
        if self._waiter is not self._head and self.waits():  # a request has begun, and its headers go on
            self._head = self._waiter
            self._loop.call_later(_HEAD, self._expire, self._head)

    def _expire(self, head: "asyncio.Future[None] | None") -> None:
        if head is self._waiter and self.waits():
            self.drop()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  it quotes the request
    ) -> web.StreamResponse:
        """Return the answer to what is no request, or that fails in the gateway itself."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionResetError  # it is too late for an answer
        internal = Failure(500, "internal_error", f"an error of the gateway ({type(exc).__name__}); please report it")
        response = self._refuse(_INVALID if status == 400 else internal)
        response.force_close()
        return response


class Server(web.Server):
    """Accepts connections up to a number."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refuse: Callable[[Failure], web.Response],
        most: int,
        **options: Any,
    ) -> None:
        """``most``: this many connections."""
        super().__init__(answer, handler_cancellation=True)
        self._refuse = refuse
        self._most = most
        self._options = options
        self._open: dict[RequestHandler, None] = {}

    def __call__(self) -> RequestHandler:
        """Return a handler for a new connection."""
        return Connection(self, self._refuse, **self._options)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection, and close one if there are too many."""
        super().connection_made(handler, transport)
        self._open[handler] = None
        if len(self._open) > self._most:
            dropped = self._least(handler)
            del self._open[dropped]
            dropped.drop()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection no more."""
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)

    def _least(self, newest: RequestHandler) -> Connection:
        """Return the oldest connection without an allowed request, else the oldest one that is idle, else the newest.

        So requests and streams that were allowed are never ended.
        """
        others = [each for each in self._open if each is not newest and isinstance(each, Connection)]
        assert isinstance(newest, Connection)  # noqa: S101  for the type checker: this server makes no others
        strangers = (each for each in others if not each.accepted)
        return next(strangers, None) or next((each for each in others if each.waits()), newest)


def accept(request: web.BaseRequest) -> None:
    """Record that a request is allowed."""
    if isinstance(request.protocol, Connection):
        request.protocol.accepted = True
