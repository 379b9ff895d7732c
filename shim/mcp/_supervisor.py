"""Keeps one MCP session connected: connects, reconnects, and waits for tokens. Belongs to one event loop."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup
from mcp import Client, MCPError

from shim._backoff import backoff
from shim._changes import Changes, Restored, Rotated, permanent_error
from shim._failure import Failure, describe
from shim._source import FileTokenSource, valid_for
from shim._token import TokenFile
from shim.errors import ReauthorizationRequired, Removed, ServerAway, ShimError
from shim.mcp._connection import CURRENT_CALL, Connection
from shim.mcp._endpoint import Endpoint
from shim.mcp._failure import failure_kind, refusal_in, root_cause
from shim.mcp._rejection import TokenGate
from shim.mcp._status import Status
from shim.mcp._task import start_task

__all__ = ["Supervisor"]

_CONNECT_TIMEOUT = 60.0
_CLOSE_TIMEOUT = 2.5
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_GIVE_UP_AFTER = 6
_STABLE_AFTER = 60.0
"""Seconds after which a connection counts as working, even without a call."""
_POLL_INTERVAL = 0.25
"""Seconds between two checks of the token file; each check is one ``stat``."""
_NOT_CONNECTED = "not connected yet"


class Supervisor:
    """Keeps a session connected. Callers get the connection from it, and report what failed."""

    def __init__(
        self,
        endpoint: Endpoint,
        source: FileTokenSource,
        options: Mapping[str, Any],
        restore: Callable[[Client], Awaitable[None]],
        recover: Callable[[MCPError, str, float], Awaitable[bool]],
        renew: Callable[[str], Awaitable[bool]],
        patience: float,
    ) -> None:
        self.status = Status()
        self._endpoint = endpoint
        self._source = source
        self._options = options
        self._restore = restore
        """Gives a new session what the program set in an earlier one."""
        self._recover = recover
        """Whether an error of the server to a handshake is about the token; waits for another one."""
        self._renew = renew
        """Demands another token than the given one, and waits for it; returns whether there is one."""
        self._patience = patience
        self._gate = TokenGate(endpoint, source)
        self._failures = 0
        """Failures to connect in a row."""
        self._answers = 0
        """The number of answers to calls."""
        self._connection: Connection | None = None
        """The connection that takes calls."""
        self._latest: Connection | None = None
        """The connection that was started last, in any condition."""
        self.last_failure = _NOT_CONNECTED
        """Why the server cannot be reached."""
        self._permanent_error_emitted = False
        self._closing = False
        self._task: object = None
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    # What callers request.

    async def connection(self, deadline: float) -> Connection:
        """Return a connection that is ready.

        Raises the problem if only a person or a new token can help, ``ServerAway`` at ``deadline`` (the event loop's
        time), and ``ClosedResourceError`` if the client is closed.
        """
        while True:
            self._raise_if_unusable()
            if (outer := self.outer_connection()) is not None:
                return outer
            connection = self._connection
            if connection is not None:
                self._retire_if_outdated(connection)
                if not connection.retired.is_set():
                    return connection
            with anyio.CancelScope(deadline=deadline) as scope:
                await self.status.change()
            if scope.cancelled_caught:
                raise self.server_away()

    def client(self) -> Client:
        """Return the SDK's client of the connection; raises like ``connection``, without waiting."""
        self._raise_if_unusable()
        if self._connection is None:
            raise self.server_away()
        return self._connection.ready_client()

    def access_token(self, connection: Connection | None = None) -> str:
        """Return the access token that a call on ``connection`` is made with; by default, the published one."""
        if connection is not None and self._endpoint.is_process:
            return connection.access_token
        token = self._source.current()
        return "" if token is None or token.access_token is None else token.access_token

    def server_away(self) -> ServerAway:
        """Return the error for a caller that has waited for its patience."""
        connection = self._connection
        retired = connection is not None and connection.retired.is_set()
        reason = connection.reason if connection is not None and retired else self.last_failure
        return ServerAway(f"no connection to {self._endpoint.name}: {reason}")

    async def sleep(self, seconds: float, *, until_answer: bool = False) -> None:
        """Sleep, ``until_answer``: only until the server answers another call.

        Raises ``ClosedResourceError`` as soon as the client is closed.
        """
        answers = self._answers
        await self.status.wait_until(
            lambda: self._closing or (until_answer and self._answers != answers), anyio.current_time() + seconds
        )
        if self._closing:
            raise anyio.ClosedResourceError

    async def wait_for_usable_token(self) -> None:
        """Wait until a token may be sent, or until the client is closed."""
        while not self._closing and self._gate.problem() is not None:
            with anyio.move_on_after(_POLL_INTERVAL):  # nothing announces the end of a cool-down
                await self.status.change()

    async def wait_for_first_attempt(self, deadline: float) -> None:
        """Wait until the first attempt to connect has succeeded or failed."""
        await self.status.wait_until(lambda: self.status.state != "connecting", deadline)

    async def wait_for_another_token(self, unwanted: str, deadline: float) -> bool:
        """Wait for a usable access token other than ``unwanted``; return whether there is one.

        The wait ends at ``deadline``, when the grant is removed or needs a new login, or when the client is closed.
        """

        def is_there() -> bool:
            return self.access_token() != unwanted and self._gate.problem() is None

        def is_hopeless() -> bool:
            token = self._source.current()
            return self._closing or (token is not None and permanent_error(token) is not None)

        await self.status.wait_until(lambda: is_there() or is_hopeless(), deadline)
        return is_there() and not self._closing

    def _raise_if_unusable(self) -> None:
        if self._closing:
            raise anyio.ClosedResourceError
        if (problem := self._gate.problem()) is not None:
            raise problem

    def outer_connection(self) -> Connection | None:
        """Return the connection for a call from a callback, if it must be that of the outer call.

        A process ends only after the outer call, and the next process starts only after that. So it takes the call,
        although its token may be outdated.
        """
        call = CURRENT_CALL.get()
        if call is None or not self._endpoint.is_process or call.connection is not self._latest:
            return None
        return call.connection if call.connection.is_busy else None

    # What callers report.

    def call_answered(self, connection: Connection) -> None:
        """Record that the server answered a call on ``connection``."""
        connection.has_answered = True
        self._failures = 0
        self._answers += 1
        self.status.notify()
        if not connection.retired.is_set() and self.access_token(connection) == self.access_token():
            self._gate.accept()  # an answer to an older token says nothing about the current one

    def missing_scope(self, error: MCPError) -> ShimError:
        """Return the error for the caller of a request for which the token lacks a scope."""
        return refusal_in(error).as_error(self._source.name, self._endpoint.origin or self._endpoint.name)

    def token_rejected(self, sent_at: float, problem: ShimError | None = None) -> ShimError:
        """Record that the newest token was rejected in a request of ``sent_at``; return the error for its caller."""
        problem = self._gate.reject(sent_at, problem)
        self._park_after_permanent_error()
        return problem

    def retire(self, connection: Connection, reason: str) -> None:
        """Replace ``connection``; repeated calls count as one."""
        if not connection.retired.is_set():
            connection.retire(reason)
            self.status.notify()

    def _stream_changed(self, connection: Connection, failure: Failure | None, sent_at: float) -> None:
        """Record what happened to the server's stream of notifications."""
        if connection.retired.is_set():
            return
        if failure is not None and failure.kind == "unknown_session":
            self.retire(connection, failure.reason)
            return
        token = self._source.current()
        if failure is not None and failure.kind == "rejected" and token is not None and permanent_error(token):
            self.token_rejected(sent_at)
        self.status.stream_changed(connection, None if failure is None else failure.reason)

    def _retire_if_outdated(self, connection: Connection) -> None:
        if self._gate.is_outdated(connection):
            self.retire(connection, "the token has rotated")

    # Start and end.

    def start(self) -> None:
        """Keep the session connected from now on, until ``close``."""
        if self._task is not None:
            raise RuntimeError("a client can be entered only once, and this one was entered before; create a new one")
        self._task = start_task(self._run)

    async def close(self) -> None:
        """End all waits and the session. Give the server a moment to end it too."""
        self._mark_closed()
        try:
            if self._connection is not None:
                self._connection.abort("closed")
                with anyio.move_on_after(_CLOSE_TIMEOUT):
                    await self._connection.ended.wait()
        finally:
            if self._scope is not None:
                self._scope.cancel()
        await self.wait_until_ended()

    async def wait_until_ended(self) -> None:
        """Wait until all tasks have ended."""
        if self._task is not None:
            await self._ended.wait()

    def _mark_closed(self) -> None:
        self._closing = True
        self.status.set_state("closed")
        self.status.events.close()

    # The task.

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                if not self._closing:
                    tasks.start_soon(self._watch_token_file, self._source.changes(), self._source.current())
                    await self._stay_connected(tasks)
        finally:
            self._mark_closed()  # also after an error, so that no caller waits for the task any more
            self._ended.set()

    async def _stay_connected(self, tasks: TaskGroup) -> None:
        while not self._closing:
            token = await self._usable_token()
            if self._closing:
                return
            started = time.monotonic()
            connection = self._latest = Connection(token, self._patience, self._stream_changed)
            try:
                transport = self._endpoint.transport(connection.access_token)
                with anyio.fail_after(_CONNECT_TIMEOUT):
                    await tasks.start(connection.run, transport, self._options, self._restore)
            except Exception as error:  # noqa: BLE001  a server can fail in any way, and the next attempt follows
                self.status.stream_changed(connection, None)
                await self._connecting_failed(root_cause(error), connection.access_token, started)
                continue
            self._connection = connection
            self.status.connected(self._endpoint.name)
            await connection.retired.wait()
            if self._closing:
                return
            self._connection = None
            if self.status.state != "parked":
                self.last_failure = connection.reason
                self.status.set_state("reconnecting")
                self.status.events.emit("reconnecting", connection.reason)
            self.status.stream_changed(connection, None)  # the next session has a stream of its own
            if self._endpoint.is_process:
                await connection.ended.wait()  # two processes must not run at the same time
            # A client that only listens makes no calls, so a long life counts as well.
            worked = connection.has_answered or time.monotonic() - started > _STABLE_AFTER
            if not worked and connection.access_token == self.access_token():
                await self._back_off()

    async def _usable_token(self) -> TokenFile:
        """Wait for a token that may be sent. A process gets an expired one only if no other comes for a while."""
        expired: str | None = None
        while True:
            await self._wait_for_usable_token()
            token = self._source.current()
            if token is not None and token.access_token is not None:
                if not self._endpoint.is_process or token.access_token == expired or valid_for(token) > 0:
                    return token
                expired, self.last_failure = token.access_token, "the token has expired"
                await self._renew(expired)

    async def _wait_for_usable_token(self) -> None:
        while (problem := self._gate.problem()) is not None:
            if self.status.state != "parked":
                self.status.set_state("parked")
            cool_down = self._gate.cool_down()
            if cool_down is None or isinstance(problem, ReauthorizationRequired | Removed):
                cool_down = math.inf
            with anyio.move_on_after(cool_down + _POLL_INTERVAL):
                await self.status.change()
        if self.status.state == "parked":
            self.last_failure = _NOT_CONNECTED  # earlier failures do not concern this token
            self.status.set_state("reconnecting")

    async def _connecting_failed(self, error: BaseException, access_token: str, started: float) -> None:
        if isinstance(error, MCPError):
            match failure_kind(error):
                case "rejected":
                    self.token_rejected(started)
                    return
                case "insufficient_scope":
                    self.token_rejected(started, self.missing_scope(error))
                    return
                case None if await self._recover(error, access_token, started):
                    return
                case _:
                    pass
        self.last_failure = describe(error)
        if self.status.state != "gave_up" and self._failures + 1 >= _GIVE_UP_AFTER:
            self.status.set_state("gave_up")
            self.status.events.emit("gave_up", f"{self.last_failure}; from now on only occasional attempts")
        elif self.status.state != "gave_up":
            self.status.set_state("reconnecting")
        await self._back_off()

    async def _back_off(self) -> None:
        """Wait before the next attempt; a new token ends the wait."""
        pause = backoff(self._failures, _FIRST_PAUSE, _LONGEST_PAUSE)
        self._failures += 1
        before = self.access_token()
        await self.status.wait_until(lambda: self.access_token() != before, anyio.current_time() + pause)

    async def _watch_token_file(self, changes: Changes, seen: TokenFile | None) -> None:
        """Poll the token file. A new login is visible only in the file; this sends no request to the server.

        The parameters are from before the first wait, which a change since then ends.
        """
        while True:
            event = changes.poll()
            if isinstance(event, Rotated | Restored):
                name: Literal["rotated", "restored"] = "rotated" if isinstance(event, Rotated) else "restored"
                self.status.events.emit(name, f"generation {event.generation}")
                self._permanent_error_emitted = False
            elif event is not None:
                # The token may still be valid, and the session stays as long as the server accepts the token.
                self._emit_permanent_error(event)
            # A change without an event also counts, for example of the token's origins.
            if (token := self._source.current()) is not seen:
                seen = token
                self._park_after_permanent_error()
                self.status.notify()
            if self._connection is not None:
                self._retire_if_outdated(self._connection)
            await anyio.sleep(_POLL_INTERVAL)

    def _park_after_permanent_error(self) -> None:
        """Stop sending if the token was rejected and another one needs a person."""
        problem = self._gate.problem()
        if isinstance(problem, ReauthorizationRequired | Removed) and self.status.state not in ("parked", "closed"):
            self.status.set_state("parked")
            self._emit_permanent_error(problem)
            if self._connection is not None:
                self.retire(self._connection, "only a person can help")

    def _emit_permanent_error(self, problem: ReauthorizationRequired | Removed) -> None:
        """Emit a permanent error once: the token file and the server can both report it."""
        if not self._permanent_error_emitted:
            self._permanent_error_emitted = True
            self.status.events.emit("reauthorization_required", str(problem))
