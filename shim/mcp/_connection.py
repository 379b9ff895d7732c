"""One MCP session, in a task of its own, and the calls on it."""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import mcp_types
from anyio.abc import ObjectReceiveStream, ObjectSendStream, TaskStatus
from mcp import Client, MCPError
from mcp.client import Transport
from mcp.shared.message import SessionMessage

from shim._failure import Failure
from shim._token import TokenFile
from shim.mcp._failure import as_error

__all__ = ["CURRENT_CALL", "Call", "Connection"]

_CLOSE_TIMEOUT = 2.0
"""Seconds to end the session at the server (DELETE), or for a child process to exit."""


class Connection:
    """A session. Once retired, it takes no new calls, and ends after the calls under way."""

    def __init__(
        self,
        token: TokenFile,
        patience: float,
        on_stream: Callable[["Connection", Failure | None, float], None],
    ) -> None:
        self.token = token
        """The newest token at the start. A process keeps it."""
        self.access_token = token.access_token or ""
        self.token_is_bad = False
        """Whether an answer reported the token as bad."""
        self._patience = patience
        self._on_stream = on_stream
        self.has_answered = False
        """Whether the server has answered a call on this connection."""
        self.client: Client | None = None
        """The SDK's client; ``None`` before the handshake."""
        self.reason = "the session ended"
        """Why the connection was retired."""
        self.retired = anyio.Event()
        self.ended = anyio.Event()
        self._calls: set[Call] = set()
        self._idle = anyio.Event()
        self._aborted = False

    def ready_client(self) -> Client:
        """Return the SDK's client."""
        if self.client is None:
            raise RuntimeError("the connection is not ready")
        return self.client

    @contextmanager
    def call(self, patience: float, *, reads: bool) -> Iterator["Call"]:
        """Keep the session open during a call. ``patience`` and ``reads`` are those of ``Call``."""
        with anyio.CancelScope() as scope:
            call = Call(self, patience, reads, scope)
            context = CURRENT_CALL.set(call)
            self._calls.add(call)
            try:
                yield call
            except RuntimeError as error:
                if not self.ended.is_set():
                    raise
                # The SDK raises this for a client that has ended, for example while a callback makes a call of its own.
                raise MCPError(mcp_types.CONNECTION_CLOSED, self.reason) from error
            finally:
                CURRENT_CALL.reset(context)
                self._calls.remove(call)
                for answer in call.answers:
                    answer.cancel()
                if not self._calls:
                    self._idle.set()
        if call.failure is not None and scope.cancelled_caught:
            raise as_error(call.failure)

    def stream_changed(self, failure: Failure | None, sent_at: float) -> None:
        """Record why the stream of notifications, requested at ``sent_at``, is down; ``None``: it is open."""
        self._on_stream(self, failure, sent_at)

    def end_calls(self, failure: Failure) -> None:
        """End all calls under way with an error."""
        for call in self._calls:
            call.end(failure)

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way; until the call is done, the session ends only if it breaks."""
        return bool(self._calls) and not self._aborted

    def retire(self, reason: str) -> None:
        """Take no new calls, and end after the calls under way. ``reason`` is text for a person."""
        if not self.retired.is_set():
            self.reason = reason
            self.retired.set()

    def abort(self, reason: str) -> None:
        """End now, with all calls under way."""
        self._aborted = True
        self._idle.set()
        self.retire(reason)

    async def run(
        self,
        transport: Transport,
        options: Mapping[str, Any],
        restore: Callable[[Client], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect, and stay connected until retired and idle. Raises only if it cannot connect.

        ``restore`` gives the new session what the program set in an earlier one.
        """
        # For the tasks of the session, which run the callbacks of the program.
        CURRENT_CALL.set(Call(self, self._patience))
        with anyio.CancelScope() as scope:
            try:
                async with Client(self._watch(transport), **options) as client:
                    await restore(client)
                    self.client = client
                    task_status.started()
                    await self.retired.wait()
                    while self._calls and not self._aborted:
                        self._idle = anyio.Event()
                        await self._idle.wait()
                    # A server that does not respond must not delay the end.
                    scope.deadline = anyio.current_time() + _CLOSE_TIMEOUT
            except Exception:
                if self.client is None:
                    raise
            finally:
                self.abort("the connection broke")
                self.ended.set()

    @asynccontextmanager
    async def _watch(self, transport: Transport) -> Any:
        async with transport as (reader, writer):
            yield _WatchedReader(reader, self), _CheckedWriter(writer)


@dataclass(eq=False)
class Call:
    """A call under way, or the session itself, for what belongs to no call."""

    connection: Connection
    patience: float
    """Seconds that the call may still wait for a server that is not available."""
    reads: bool = False
    """Whether the call changes nothing."""
    scope: anyio.CancelScope | None = None
    """Ends the call; ``None`` for the session."""
    failure: Failure | None = None
    """Why ``end`` ended the call."""
    answers: set[anyio.CancelScope] = field(default_factory=set)
    """The answers to questions of the server that are being sent; the end of the call cancels them."""
    executed: bool = False
    """Whether the tool was executed: after that, the SDK may send more requests for the call, and these may fail."""
    requests: int = 0
    """The number of requests that the SDK has sent for the call."""

    def end(self, failure: Failure) -> None:
        """End the call with an error; for the session, all calls, because any of them may wait for what is missing."""
        if self.scope is None:
            self.connection.end_calls(failure)
        else:
            self.failure = failure
            self.scope.cancel()


CURRENT_CALL: ContextVar[Call | None] = ContextVar("shim.mcp.current_call", default=None)
"""The call under way, also inside callbacks, in which the server asks the program.

The SDK's streams carry the caller's context to the place where its request is sent.
"""


class _CheckedWriter(ObjectSendStream[SessionMessage]):
    """Raises an error to the sender of a message that is not valid JSON. In the transport, it would end all calls."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, item: SessionMessage) -> None:
        message = item.message.model_dump(by_alias=True, mode="json", exclude_unset=True)
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        if isinstance(item.message, mcp_types.JSONRPCRequest) and (call := CURRENT_CALL.get()) is not None:
            call.requests += 1
        await self._stream.send(item)

    async def aclose(self) -> None:
        await self._stream.aclose()


class _WatchedReader(ObjectReceiveStream[Any]):
    """Aborts the connection at the end of the stream, so that no call waits for a response that cannot come."""

    def __init__(self, stream: Any, connection: Connection) -> None:
        self._stream = stream
        self._connection = connection

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._connection.abort("the connection ended")
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()
