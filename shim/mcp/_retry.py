"""Makes one call, and repeats it after a failure if that is safe."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
import mcp_types
from mcp import Client, MCPError
from pydantic import ValidationError

from shim._backoff import retry_pause
from shim._changes import permanent_error
from shim._failure import Failure
from shim._source import FileTokenSource
from shim.errors import OutcomeUnknown
from shim.mcp._connection import Connection
from shim.mcp._failure import as_error, failure_kind
from shim.mcp._supervisor import Supervisor

__all__ = ["RetryingCaller"]

_Result = TypeVar("_Result")


@dataclass
class RetryingCaller:
    """Makes calls on the session of ``supervisor``.

    It repeats a call only if the call cannot have been executed, or changes nothing.
    """

    supervisor: Supervisor
    source: FileTokenSource
    patience: float
    wait: float
    is_auth_failure: Callable[[object], bool] | None
    _reported: tuple[str, float] = ("", 0.0)
    """The access token that was reported as bad last, and since when (the event loop's time)."""

    async def call(self, operation: Callable[[Client], Awaitable[_Result]], changing: str | None) -> _Result:
        """Return the result of ``operation``; ``changing`` is its name in errors, if it may change something.

        The waits for a session, and between attempts, take up to ``patience`` seconds in total. The time of the
        operation itself does not count.
        """
        supervisor = self.supervisor
        patience, failures = self.patience, 0
        may_recover = True  # one immediate repetition, with another token or another session
        while True:
            started = anyio.current_time()
            connection = await supervisor.connection(started + patience)
            patience -= anyio.current_time() - started
            access_token, sent_at = supervisor.access_token(connection), time.monotonic()
            try:
                with connection.call(patience, reads=changing is None) as call:
                    result = await operation(connection.ready_client())
            except MCPError as error:
                failure, patience = error, call.patience
            except ValidationError:
                if call.requests == 0:
                    raise  # an argument of the caller
                failure = as_error(Failure("broken", "the server's result is not valid"))
            else:
                if not self._is_auth_failure(result):
                    self._token_accepted(connection)
                    return result
                connection.token_is_bad = True
                if not may_recover or not await self._gets_another_token(connection, access_token):
                    return result
                may_recover = False
                continue
            match failure_kind(failure):
                case None if self._is_auth_failure(failure):
                    # After the tool was executed, the error may be that of a later request of the SDK.
                    may_repeat = may_recover and (changing is None or call.requests == 1)
                    connection.token_is_bad = True
                    if not may_repeat or not await self._gets_another_token(connection, access_token):
                        raise failure
                    may_recover = False
                case None:  # the server's own answer, or the SDK's timeout
                    if failure.code != mcp_types.REQUEST_TIMEOUT:
                        self._token_accepted(connection)
                    raise failure
                case kind if kind == "undelivered" or (
                    changing is not None and (call.executed or kind in ("unavailable", "lost", "broken"))
                ):
                    raise OutcomeUnknown(
                        f"{changing or 'a call that only reads'}: {failure.message}; the call may have been executed: "
                        "check that before you repeat it"
                    ) from None
                case "rejected":
                    if not may_recover or supervisor.access_token(connection) == access_token:
                        raise supervisor.token_rejected(sent_at) from None
                    may_recover = False
                case "insufficient_scope":
                    self._token_accepted(connection)
                    raise supervisor.missing_scope(failure)
                case "unknown_session" if may_recover:
                    supervisor.retire(connection, failure.message)
                    may_recover = False
                case kind:
                    if kind == "unknown_session":
                        supervisor.retire(connection, failure.message)
                    supervisor.last_failure = failure.message
                    if patience <= 0:
                        raise supervisor.server_away() from None
                    pause, started = min(retry_pause(failures), patience), anyio.current_time()
                    failures += 1
                    await supervisor.sleep(pause, until_answer=kind == "not_sent")
                    patience -= anyio.current_time() - started

    async def recover_handshake(self, error: MCPError, access_token: str, sent_at: float) -> bool:
        """Return whether ``error``, the server's own to a handshake, is about the token; wait for another one."""
        if not self._is_auth_failure(error):
            return False
        if not await self.wait_for_another_token(access_token):
            self.supervisor.token_rejected(sent_at)
        return True

    def _is_auth_failure(self, answer: object) -> bool:
        return self.is_auth_failure is not None and self.is_auth_failure(answer)

    def _token_accepted(self, connection: Connection) -> None:
        self._reported = ("", 0.0)
        self.supervisor.call_answered(connection)

    async def _gets_another_token(self, connection: Connection, reported: str) -> bool:
        """Demand and await another token; return whether a repeated call would be made with it."""
        # A call from a callback stays on the process of the outer call, which keeps its token.
        return await self.wait_for_another_token(reported) and self.supervisor.outer_connection() is not connection

    async def wait_for_another_token(self, reported: str) -> bool:
        """Demand and await another access token than one that is ``reported`` as bad, or has expired.

        As after a 401, the wait belongs to the token: all its calls wait together.
        """
        token = self.source.current()
        if token is not None and token.access_token == reported and permanent_error(token) is None:
            self.source.demand(token)
        if self._reported[0] != reported:
            self._reported = (reported, anyio.current_time())
        return await self.supervisor.wait_for_another_token(reported, self._reported[1] + self.wait)
