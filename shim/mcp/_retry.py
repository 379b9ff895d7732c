"""One call, through whatever happens to the session under it."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import mcp_types
from mcp import Client, MCPError

from shim._changes import verdict
from shim._source import FileTokenSource
from shim.errors import OutcomeUnknown
from shim.mcp._failure import COURSE, Course, fate_of
from shim.mcp._supervisor import Keeper

__all__ = ["Calls"]

_FIRST_PAUSE = 0.25
_LAST_PAUSE = 10.0

_Result = TypeVar("_Result")


class Calls:
    """Makes calls on the session of ``keeper``; repeats one only where it cannot have been executed, or only reads."""

    def __init__(
        self,
        keeper: Keeper,
        source: FileTokenSource,
        *,
        patience: float,
        wait: float,
        is_auth_failure: Callable[[object], bool] | None,
    ) -> None:
        self._keeper = keeper
        self._source = source
        self._patience = patience
        self._wait = wait
        self._is_auth_failure = is_auth_failure
        # Which access token a result has called bad, and since when (the event loop's time).
        self._called_bad = ("", 0.0)

    async def make(self, what: str, operate: Callable[[Client], Awaitable[_Result]], *, reads: bool) -> _Result:
        """Make the call that ``operate`` makes on a client; ``what``: its name, for a person. ``reads``: no more.

        Waits for a session, and between attempts, for ``patience`` seconds in all; the call itself takes what it takes.
        """
        beyond, pause, again = 0, _FIRST_PAUSE, True
        patience = self._patience
        while True:
            began = anyio.current_time()
            link = await self._keeper.link(beyond, began + patience)
            patience -= anyio.current_time() - began
            carried, sent = self._keeper.carried(link), time.monotonic()
            course = Course()
            context = COURSE.set(course)
            try:
                with link.in_use() as client:
                    result = await operate(client)
            except MCPError as error:
                failure = error
            else:
                if not self._says_auth_failure(result):
                    self._called_bad = ("", 0.0)
                    self._keeper.worked(link)
                    return result
                if not again or not await self._recovered(carried):
                    return result
                again = False
                continue
            finally:
                COURSE.reset(context)
            match fate_of(failure):
                case None:
                    if failure.code != mcp_types.REQUEST_TIMEOUT:
                        self._keeper.worked(link)  # it has answered
                    raise failure
                case fate if not reads and (course.executed or fate in ("away", "lost")):
                    raise OutcomeUnknown(
                        f"{what}: {failure.message}; it may have been executed: find out before calling it again"
                    ) from None
                case "rejected":
                    if not again or self._keeper.carried(link) == carried:
                        raise self._keeper.refused(sent) from None
                    again = False
                case "unknown_session":
                    self._keeper.retire(link, failure.message)
                    beyond = link.number
                    if not again:
                        raise failure
                    again = False
                case _:
                    self._keeper.troubled(failure.message)
                    if link.retired.is_set():
                        beyond = link.number
                    wait = min(pause * (0.5 + random.random()), max(patience, 0.0))  # noqa: S311  jitter
                    await self._keeper.pause(wait)
                    patience -= wait
                    if patience <= 0:
                        raise self._keeper.away() from None
                    pause = min(2 * pause, _LAST_PAUSE)

    def _says_auth_failure(self, result: object) -> bool:
        return self._is_auth_failure is not None and self._is_auth_failure(result)

    async def _recovered(self, refused: str) -> bool:
        """Whether another access token came for one that a server has refused in words.

        As after a 401, the demand and the wait belong to the token: its calls wait together.
        """
        token = self._source.current()
        if token is not None and token.access_token == refused and verdict(token) is None:
            self._source.demand(token)
        if self._called_bad[0] != refused:
            self._called_bad = (refused, anyio.current_time())
        return await self._keeper.renewed(refused, self._called_bad[1] + self._wait)
