"""The MCP session of a bridge: begun by the client, and begun again when the server has lost it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import anyio
import httpx2
from anyio.abc import TaskGroup

from refresher.stdio.messages import Message
from refresher.stdio.upstream import Upstream
from shim import ShimError
from shim._backoff import retry_pause
from shim._failure import Failure

__all__ = ["Renewed", "Session", "Sessions"]

_READY_TIMEOUT: Final = 30.0
_SESSION: Final = "mcp-session-id"
_VERSION: Final = "mcp-protocol-version"
_INITIALIZED: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}
_SETTINGS: Final = {"logging/setLevel": "level", "resources/subscribe": "uri", "resources/unsubscribe": "uri"}


@dataclass(eq=False)
class Session:
    """A session at the server."""

    url: str
    headers: dict[str, str]
    """The id of the session, if the server gives one, and the protocol version."""
    result: Message
    """What the server said of itself."""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Ends the stream of the server."""
    dead: bool = False
    """Whether the server does not know it any more."""


@dataclass(frozen=True)
class Renewed:
    """A session that replaced another one."""

    result: Message

    def lists_that_change(self) -> list[str]:
        """Return the lists of the server that may be others now, if the server notifies of changes."""
        given = self.result.get("capabilities")
        capabilities = given if isinstance(given, dict) else {}
        kinds = ((kind, capabilities.get(kind)) for kind in ("tools", "prompts", "resources"))
        return [kind for kind, said in kinds if isinstance(said, dict) and said.get("listChanged")]


class Sessions:
    """Keeps a session. ``renewed`` is called when a new one has replaced it."""

    def __init__(
        self,
        upstream: Upstream,
        tasks: TaskGroup,
        deliver: Callable[[Message, object], Awaitable[None]],
        renewed: Callable[[Renewed], Awaitable[None]],
    ) -> None:
        self._upstream = upstream
        self._tasks = tasks
        self._deliver = deliver
        self._renewed = renewed
        self._initialize: Message | None = None
        """The request of the client that began the session."""
        self._renewing = anyio.Lock()
        self._settings: dict[object, Message] = {}
        """What the client set in the session: a new one gets it too."""
        self.current: Session | None = None
        self.version: str | None = None
        """The protocol version of the client."""

    async def initialize(self, message: Message) -> Message | Failure:
        """Begin a session for the client. Raises a ``ShimError`` if no token may be sent."""
        outcome = await self._begin(message)
        if isinstance(outcome, Session):
            if self.current is not None:
                self.current.scope.cancel()
            self.current, self._initialize = outcome, message
            self.version = outcome.headers.get(_VERSION)
            self._settings.clear()
            return {"jsonrpc": "2.0", "id": message["id"], "result": outcome.result}
        return outcome

    async def _begin(self, message: Message) -> Session | Message | Failure:
        url = self._upstream.url()
        headers: dict[str, str] = {}

        def opened(given: httpx2.Headers) -> None:
            if _is_header_value(session_id := given.get(_SESSION)):
                headers[_SESSION] = session_id

        async def drop(_: Message) -> None: ...

        answer = await self._upstream.exchange(message, url, {}, drop, opened)
        if isinstance(answer, Failure) or not isinstance(result := answer.get("result"), dict):
            return answer
        if _is_header_value(version := result.get("protocolVersion")):
            headers[_VERSION] = version
        return Session(url, headers, result)

    async def begin(self, message: Message) -> None:
        """Send the notification that the client is ready, then listen to the server."""
        if (session := self.current) is None:
            return
        ready = False
        with anyio.move_on_after(_READY_TIMEOUT):
            ready = await self._upstream.notify(message, session.url, session.headers) is None
        if ready:
            self._tasks.start_soon(self._listen, session)
        else:
            self._lost(session)  # probably the server has restarted

    async def live(self) -> Session | Failure | None:
        """Return a session that the server knows, a new one if needed; ``None`` if the client has begun none."""
        async with self._renewing:
            session = self.current
            if session is None or not session.dead:
                return session
            outcome = await self._renew(session)
            if isinstance(outcome, Failure):
                # Nothing of the client's own request was sent.
                kind = outcome.kind if outcome.kind in ("rejected", "insufficient_scope") else "not_sent"
                return outcome._replace(kind=kind)
            return outcome

    async def _renew(self, before: Session) -> Session | Failure:
        began = self._initialize or {}
        params = began["params"] if isinstance(began.get("params"), dict) else {}
        # Not a newer version: the client has agreed to this one.
        version = {} if self.version is None else {"protocolVersion": self.version}
        outcome = await self._begin(began | {"params": params | version})
        if isinstance(outcome, Failure):
            return outcome
        if not isinstance(outcome, Session):
            return Failure("broken", "the server refuses a new session")
        if outcome.headers.get(_VERSION) != self.version:
            return Failure("broken", "the server has changed its protocol version: restart the client")
        failure = await self._upstream.notify(_INITIALIZED, outcome.url, outcome.headers)
        if failure is not None:
            return failure

        async def drop(_: Message) -> None: ...

        for message in list(self._settings.values()):
            again = await self._upstream.exchange(message, outcome.url, outcome.headers, drop)
            if isinstance(again, Failure):
                return again
        before.scope.cancel()
        self.current = outcome
        self._tasks.start_soon(self._listen, outcome)
        await self._renewed(Renewed(outcome.result))
        return outcome

    async def exchange(self, session: Session | None, message: Message) -> Message | Failure:
        """Send a request in ``session``, or before there is one."""
        url, headers = (self._upstream.url(), {}) if session is None else (session.url, session.headers)
        self._upstream.url()  # no request without a token
        outcome = await self._upstream.exchange(message, url, headers, lambda each: self._deliver(each, session))
        if isinstance(outcome, Failure) and outcome.kind == "unknown_session" and session is not None:
            session.dead = True
        return outcome

    async def notify(self, message: Message) -> Failure | None:
        """Send a message without an answer in the current session; return why the server does not have it."""
        session = self.current
        if session is None or session.dead:
            return Failure("unknown_session", "there is no session")
        try:
            self._upstream.url()
        except ShimError as problem:
            return Failure("not_sent", self._upstream.text(problem))
        failure = await self._upstream.notify(message, session.url, session.headers)
        if failure is not None and failure.kind == "unknown_session":
            self._lost(session)
        return failure

    def remember(self, message: Message, answer: Message) -> None:
        """Remember a request of the client that sets something, if the server has done it."""
        method, params = message["method"], message.get("params")
        if (key := _SETTINGS.get(method)) is None or "result" not in answer or not isinstance(params, dict):
            return
        what = (key, str(params.get("uri")))
        self._settings.pop(what, None)
        if method != "resources/unsubscribe":
            self._settings[what] = message

    async def _listen(self, session: Session) -> None:
        """Deliver what the server sends outside of requests."""

        def report(failure: Failure | None, _: float) -> None:
            if failure is not None and failure.kind == "unknown_session":
                self._lost(session)

        deliver: Callable[[Message], Any] = lambda each: self._deliver(each, session)  # noqa: E731
        failures = 0
        with session.scope:
            while not session.dead:
                with suppress(httpx2.HTTPError):  # an event was too long
                    await self._upstream.listen(session.url, session.headers, deliver, report)
                await anyio.sleep(retry_pause(failures))
                failures += 1

    def _lost(self, session: Session) -> None:
        if not session.dead:
            session.dead = True
            self._tasks.start_soon(self._revive, session)

    async def _revive(self, session: Session) -> None:
        """Begin a new session without a request of the client, so that notifications go on."""
        failures = 0
        while self.current is session:
            with suppress(ShimError):
                await self.live()
            await anyio.sleep(retry_pause(failures))
            failures += 1

    async def close(self) -> None:
        """End the session at the server."""
        session = self.current
        if session is not None and not session.dead and _SESSION in session.headers:
            try:
                await self._upstream.end(session.url, session.headers)
            except httpx2.HTTPError:
                return  # the server ends it itself, some time


def _is_header_value(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.isascii() and value.isprintable()
