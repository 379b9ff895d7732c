"""Keeps one MCP session up: builds it, waits with it, builds it anew. It belongs to one event loop."""

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup
from mcp import Client, MCPError

from shim._changes import Restored, Rotated, verdict
from shim._source import FileTokenSource
from shim.errors import ReauthorizationRequired, Removed, ServerAway, ShimError
from shim.mcp._backoff import Pace
from shim.mcp._client_events import Happenings
from shim.mcp._connection import WITHIN, Link
from shim.mcp._endpoint import Target
from shim.mcp._failure import fate_of, leaf
from shim.mcp._rejection import Refusals
from shim.mcp._task import begin

__all__ = ["Keeper", "State"]

State = Literal["connecting", "connected", "reconnecting", "parked", "gave_up", "closed"]
"""``parked``: nothing is sent before there is another token. ``gave_up``: only a trial now and then."""

_TO_CONNECT = 60.0
_LONG_ENOUGH = 60.0
_TO_LEAVE = 2.5
_LOOK = 0.25
"""Seconds between two looks at the token file: each is one ``stat``."""
_NOT_YET = "not connected yet"


class Keeper:
    """The one owner of the session; callers ask it for a link, and tell it what was wrong with one."""

    def __init__(self, target: Target, source: FileTokenSource, options: Mapping[str, Any]) -> None:
        self.happenings = Happenings()
        self.state: State = "connecting"
        """Where it stands."""
        self._target = target
        self._source = source
        self._options = options
        self._pace = Pace()
        self._link: Link | None = None
        self._newest: Link | None = None
        """The one that was begun last, whatever has become of it."""
        self._links = 0
        self._changed = anyio.Event()
        self._closing = False
        self._task: object = None
        self._ended = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self._verdict_told = False
        self._away = _NOT_YET
        self._refusals = Refusals(target, source)

    # What callers ask and tell.

    async def link(self, beyond: int, ends: float) -> Link:
        """Return a link that is ready and newer than number ``beyond``.

        Raises what keeps it from working where only a person or a new token can help; ``ServerAway`` at ``ends`` (the
        event loop's time); ``ClosedResourceError`` where the client is closed.
        """
        while True:
            if self._closing:
                raise anyio.ClosedResourceError
            if (problem := self.problem()) is not None:
                raise problem
            if (link := WITHIN.get()) is not None and self._outlasts(link) and link.number > beyond:
                return link
            link = self._link
            if link is not None and link.number > beyond and not link.retired.is_set():
                self._retire_if_outdated(link)
                if not link.retired.is_set():
                    return link
            with anyio.move_on_after(max(ends - anyio.current_time(), 0.0)) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                raise self.away()

    async def pause(self, seconds: float) -> None:
        """Wait. Raises ``ClosedResourceError`` where the client is closed."""
        with anyio.move_on_after(seconds):
            while not self._closing:
                await self._changed.wait()
        if self._closing:
            raise anyio.ClosedResourceError

    async def renewed(self, refused: str, ends: float) -> bool:
        """Wait for another access token than ``refused``; not beyond a verdict, ``ends``, or the end of the client."""
        with anyio.move_on_after(max(ends - anyio.current_time(), 0.0)):
            while not self._closing:
                if self._access_token() != refused and self.problem() is None:
                    return True
                if (token := self._source.current()) is not None and verdict(token) is not None:
                    return False
                await self._changed.wait()
        return False

    def carried(self, link: Link) -> str:
        """Return the access token that a call on ``link`` is made with."""
        return link.access_token if self._target.is_child else self._access_token()

    def client(self) -> Client:
        """Return the client there is. Raises what ``link`` raises, at once."""
        if self._closing:
            raise anyio.ClosedResourceError
        if (problem := self.problem()) is not None:
            raise problem
        if self._link is None or self._link.client is None:
            raise self.away()
        return self._link.client

    async def first(self, ends: float) -> None:
        """Wait until the first attempt to connect has come to something."""
        with anyio.move_on_after(max(ends - anyio.current_time(), 0.0)):
            while self.state == "connecting" and not self._closing:
                await self._changed.wait()

    def problem(self) -> ShimError | None:
        """Return what nobody here can mend."""
        return self._refusals.problem()

    def refused(self, since: float) -> ShimError:
        """Note that a request of ``since`` was refused with the newest token; return what to tell its caller."""
        problem = self._refusals.refused(since)
        self._park_if_over()
        return problem

    def _park_if_over(self) -> None:
        """Where a token was refused and only a person can bring another: say so, and send nothing."""
        problem = self.problem()
        if isinstance(problem, ReauthorizationRequired | Removed) and self.state not in ("parked", "closed"):
            self._enter("parked")
            self._tell_verdict(problem)
            if self._link is not None:
                self.retire(self._link, "only a person can help")

    def retire(self, link: Link, reason: str) -> None:
        """Have ``link`` replaced; of any number of callers that say so, one is heard."""
        if not link.retired.is_set():
            link.retire(reason)
            self._announce()

    def _outlasts(self, within: Link) -> bool:
        """Whether a child stays for a call that is part of another: it ends, and the next begins, after the other."""
        return self._target.is_child and within is self._newest and within.is_busy

    def _retire_if_outdated(self, link: Link) -> None:
        if self._target.is_child and link.access_token != self._access_token():
            self.retire(link, "the token has rotated")

    def worked(self, link: Link) -> None:
        """Note that a call was answered on ``link``."""
        link.worked = True
        self._pace.worked()
        if not link.retired.is_set():
            self._refusals.forget()  # an answer on an older one says nothing of the token there is

    def away(self) -> ServerAway:
        """Return what to tell a caller whose patience has ended."""
        link = self._link
        words = self._away if link is None or not link.retired.is_set() else link.reason
        return ServerAway(f"no connection to {self._target.name}: {words}")

    def troubled(self, words: str) -> None:
        """Note why the server cannot be reached, for whoever gives up waiting."""
        self._away = words

    # What it does by itself.

    def begin(self) -> None:
        """Keep the session up from now on, until ``close``."""
        if self._task is not None:
            raise RuntimeError("it was entered before; make a new one")
        self._task = begin(self._run)

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                if not self._closing:
                    tasks.start_soon(self._watch)
                    await self._keep(tasks)
        finally:
            self._close()  # whatever has ended it: nobody waits for it any more
            self._ended.set()

    async def close(self) -> None:
        """Let nobody wait any more, take leave of the server if it is quick about it, and end."""
        self._close()
        try:
            if self._link is not None:
                self._link.abandon("closed")
                with anyio.move_on_after(_TO_LEAVE):
                    await self._link.ended.wait()
        finally:
            if self._scope is not None:
                self._scope.cancel()
        await self.end()

    async def end(self) -> None:
        """Wait until nothing of it is left."""
        if self._task is not None:
            await self._ended.wait()

    def _close(self) -> None:
        self._closing = True
        self._enter("closed")
        self.happenings.end()

    async def _keep(self, tasks: TaskGroup) -> None:
        """Have a link at all times."""
        while not self._closing:
            await self._until_usable()
            self._links += 1
            link, since = Link(self._links, self._access_token()), time.monotonic()
            self._newest = link
            try:
                with anyio.fail_after(_TO_CONNECT):
                    await tasks.start(link.live, self._target.transport(link.access_token), self._options)
            except Exception as error:  # noqa: BLE001  a server can fail in any way; the next attempt is what matters
                await self._failed(leaf(error), since)
                continue
            self._link = link
            self._enter("connected")
            self.happenings.tell("connected", f"to {self._target.name}")
            await link.retired.wait()
            if self._closing:
                return
            self._link = None
            if self.state != "parked":
                self.troubled(link.reason)
                self._enter("reconnecting")
                self.happenings.tell("reconnecting", link.reason)
            if self._target.is_child:
                await link.ended.wait()  # never two at once
            # Who only listens makes no call by which it could be told that it works.
            worked = link.worked or time.monotonic() - since > _LONG_ENOUGH
            if not worked and link.access_token == self._access_token():
                await self._rest(self._pace.failed())

    async def _watch(self) -> None:
        """Look at the token file: the server is never asked whether a person has logged in."""
        changes, seen = self._source.changes(), self._source.current()
        while True:
            event = changes.poll()
            if isinstance(event, Rotated):
                self.happenings.tell("rotated", f"generation {event.generation}")
            elif isinstance(event, Restored):
                self.happenings.tell("restored", f"generation {event.generation}")
            elif isinstance(event, ReauthorizationRequired | Removed):
                # The token may live on: the session stays as long as the server takes it.
                self._tell_verdict(event)
            if isinstance(event, Rotated | Restored):
                self._verdict_told = False
            # Not each change is an event: a file may come to be for another server.
            if (token := self._source.current()) is not seen:
                seen = token
                self._park_if_over()
                if self._link is not None:
                    self._retire_if_outdated(self._link)
                self._announce()
            await anyio.sleep(_LOOK)

    async def _until_usable(self) -> None:
        while (problem := self.problem()) is not None:
            if self.state != "parked":
                self._enter("parked")
            remaining = self._refusals.remaining()
            if remaining is None or isinstance(problem, ReauthorizationRequired | Removed):
                remaining = math.inf
            with anyio.move_on_after(remaining + _LOOK):
                await self._changed.wait()
        if self.state == "parked":
            self.troubled(_NOT_YET)  # what there was before is over
            self._enter("reconnecting")

    async def _failed(self, error: BaseException, since: float) -> None:
        if isinstance(error, MCPError) and fate_of(error) == "rejected":
            self.refused(since)
            return
        pause = self._pace.failed()
        self.troubled(str(error) or type(error).__name__)
        if self._pace.is_open and self.state != "gave_up":
            self._enter("gave_up")
            self.happenings.tell("gave_up", f"{self._away}; one trial now and then")
        elif self.state != "gave_up":
            self._enter("reconnecting")
        await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait; a new token ends the wait."""
        before = self._access_token()
        with anyio.move_on_after(seconds):
            while self._access_token() == before:
                await self._changed.wait()

    def _access_token(self) -> str:
        token = self._source.current()
        return "" if token is None or token.access_token is None else token.access_token

    def _enter(self, state: State) -> None:
        if self.state != "closed":
            self.state = state
        self._announce()

    def _tell_verdict(self, problem: ReauthorizationRequired | Removed) -> None:
        """Tell it once, whether the file or the server has said it first."""
        if not self._verdict_told:
            self._verdict_told = True
            self.happenings.tell("reauthorization_required", str(problem))

    def _announce(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
