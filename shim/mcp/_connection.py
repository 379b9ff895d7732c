"""One MCP session, in a task of its own."""

import json
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import anyio
import mcp_types
from anyio.abc import TaskStatus
from mcp import Client, MCPError
from mcp.client import Transport
from mcp.shared.message import SessionMessage

__all__ = ["WITHIN", "Link"]

_TO_LEAVE = 2.0
"""Seconds for taking leave of the server (DELETE), or for a child to end."""


class Link:
    """A session that lives until it is retired, and then as long as calls are under way on it."""

    def __init__(self, number: int, access_token: str) -> None:
        self.number = number
        self.access_token = access_token
        self.worked = False
        """Whether a call has been answered on it."""
        self.client: Client | None = None
        self.reason = "it ended"
        self.retired = anyio.Event()
        self.ended = anyio.Event()
        self._calls = 0
        self._idle = anyio.Event()
        self._abandoned = False

    def there(self) -> Client:
        """Return the client; it ends with the session."""
        if self.client is None:
            raise RuntimeError("a link was given out before it was there")
        return self.client

    @contextmanager
    def in_use(self) -> Iterator[Client]:
        """Have the session stay while a call is under way."""
        client = self.there()
        self._calls += 1
        context = WITHIN.set(self)
        try:
            yield client
        except RuntimeError as error:
            if not self.ended.is_set():
                raise
            # The SDK's words for a client that has ended, as one may between a question back and its answer.
            raise MCPError(mcp_types.CONNECTION_CLOSED, self.reason) from error
        finally:
            WITHIN.reset(context)
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way on it; it does not end before, unless it breaks."""
        return self._calls > 0 and not self._abandoned

    def retire(self, reason: str) -> None:
        """Take no more calls, and end with the last one. ``reason``: for a person."""
        if not self.retired.is_set():
            self.reason = reason
            self.retired.set()

    def abandon(self, reason: str) -> None:
        """End, whatever is under way."""
        self._abandoned = True
        self._idle.set()
        self.retire(reason)

    async def live(
        self,
        transport: Transport,
        options: Mapping[str, Any],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect, and stay until retired and idle; raises only where it cannot connect."""
        WITHIN.set(self)  # for the tasks of the session, which run the program's callbacks
        with anyio.CancelScope() as scope:
            try:
                async with Client(self._noting_its_end(transport), **options) as client:
                    self.client = client
                    task_status.started()
                    await self.retired.wait()
                    while self._calls and not self._abandoned:
                        self._idle = anyio.Event()
                        await self._idle.wait()
                    # A server that is gone must not keep anybody from leaving.
                    scope.deadline = anyio.current_time() + _TO_LEAVE
            except Exception:
                if self.client is None:
                    raise
            finally:
                self.abandon("the connection broke")
                self.ended.set()

    @asynccontextmanager
    async def _noting_its_end(self, transport: Transport) -> Any:
        async with transport as (reading, writing):
            yield _Noting(reading, self), _Checking(writing)


WITHIN: ContextVar[Link | None] = ContextVar("shim.mcp.within", default=None)
"""The link on which a call is under way, also in the callbacks by which its server asks back."""


class _Stream:
    """A stream of the SDK's, to its dispatcher."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(kind, error, trace)
        return ended


class _Checking(_Stream):
    """A write stream that tells who sends what cannot be sent; the transport would end for all."""

    async def send(self, item: SessionMessage) -> None:
        told = item.message.model_dump(by_alias=True, mode="json", exclude_unset=True)
        json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
        await self._stream.send(item)


class _Noting(_Stream):
    """A read stream that says when it ends, so that nobody calls into the void."""

    def __init__(self, stream: Any, link: Link) -> None:
        super().__init__(stream)
        self._link = link

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._link.abandon("the connection ended")
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._link.abandon("the connection ended")
            raise
