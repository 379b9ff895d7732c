"""A bridge between an MCP client on stdin and stdout and a streamable HTTP server."""

import itertools
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from refresher.common.text import one_line
from refresher.stdio.messages import (
    BATCHES,
    CUT,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LONGEST,
    PARSE_ERROR,
    Message,
    dump,
    error,
    find_id,
    is_answer,
    is_id,
    is_request,
    modern_version,
    parse,
    request_headers,
)
from refresher.stdio.pipes import Input, Output, take_standard_streams
from refresher.stdio.sessions import Renewed, Sessions
from refresher.stdio.tools import Tools
from refresher.stdio.upstream import Upstream
from shim import FileTokenSource, ShimError
from shim._backoff import retry_pause
from shim._failure import Failure

__all__ = ["run"]

log = logging.getLogger(__name__)

_MOST_REQUESTS: Final = 1000
_MOST_QUESTIONS: Final = 1000
"""Requests of the server that the client has not answered."""
_CLOSE_TIMEOUT: Final = 1.5
"""Seconds to end the session at the server: clients kill a process that takes longer than 2 s."""
_NOTIFY_TIMEOUT: Final = 30.0
_LONGEST_SHOWN: Final = 100
_POLL_INTERVAL: Final = 0.25
_CANCEL_TIMEOUT: Final = 5.0

_READS: Final = frozenset(
    {
        *("initialize", "server/discover", "ping", "tools/list", "prompts/list", "prompts/get", "resources/list"),
        *("resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe"),
        *("completion/complete", "logging/setLevel", "tasks/get", "tasks/list", "tasks/result"),
    }
)
"""The requests that change nothing, or the same when they are sent twice."""

Reply = Callable[[Message | None], Awaitable[None]]


def run(source: FileTokenSource, url: str | None, ca_file: str | None, patience: float, command: str) -> None:
    """Serve the client on stdin and stdout, until it closes stdin or a signal to stop comes."""
    anyio.run(_serve, Upstream(source, url, ca_file, patience, command), patience)


async def _serve(upstream: Upstream, patience: float) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        stdin, stdout = take_standard_streams()
        lines, output = Input(stdin, LONGEST), Output(stdout)
        async with anyio.create_task_group() as tasks:
            bridge = Bridge(upstream, output.send, patience, tasks)

            async def read() -> None:
                async for line in lines:
                    await bridge.take(line)
                tasks.cancel_scope.cancel()

            async def stop() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            async def closed() -> None:
                await output.closed.wait()
                tasks.cancel_scope.cancel()

            for task in (read, stop, closed):
                tasks.start_soon(task)
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await bridge.sessions.close()
            await upstream.http.aclose()


@dataclass(eq=False)
class _Request:
    """A request of the client that has no answer yet."""

    message: Message
    version: str | None
    """The protocol version that it names itself; it needs no session then."""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    sent: bool = False


class Bridge:
    """Takes the messages of the client, and sends it those of the server."""

    def __init__(
        self, upstream: Upstream, write: Callable[[bytes], Awaitable[None]], patience: float, tasks: TaskGroup
    ) -> None:
        self._upstream = upstream
        self._write = write
        self._patience = patience
        self._tasks = tasks
        self._requests: dict[bytes, _Request] = {}
        self._notifying = anyio.Lock()
        self._tools = Tools()
        self._asked: dict[int, tuple[object, object]] = {}
        """The requests of the server that the client has not answered: session and id there, by the id here."""
        self._numbers = itertools.count(1)
        self.sessions = Sessions(upstream, tasks, self._from_server, self._renewed)

    async def _send(self, message: object) -> None:
        await self._write(dump(message))

    # What the client sends.

    async def take(self, line: bytes) -> None:
        """Take a line of the client. Only a slow client makes this wait, and the start of a session."""
        if not line.strip():
            return
        try:
            message = parse(line)
        except ValueError:
            text = f"a message has at most {LONGEST // 2**20} MiB" if CUT in line else "the line is not JSON"
            await self._send(error(find_id(line), PARSE_ERROR, text))
            return
        if isinstance(message, list) and message and self.sessions.version == BATCHES:
            requests = sum(isinstance(each, dict) and is_request(each) for each in message)
            reply = _Batch(requests, self._send)
            for each in message:
                await self._take(each, reply)
        elif isinstance(message, list) and message:
            for each in [each for each in message if isinstance(each, dict) and is_request(each)] or [{}]:
                await self._refuse(each, f"only protocol version {BATCHES} has batches", self._reply)
        else:
            await self._take(message, self._reply)

    async def _reply(self, answer: Message | None) -> None:
        if answer is not None:
            await self._send(answer)

    async def _refuse(self, message: Any, text: str, reply: Reply) -> None:
        # What is no request can be an answer, with an id of the server.
        if isinstance(message, dict) and is_request(message):
            await reply(error(message["id"] if is_id(message["id"]) else None, INVALID_REQUEST, text))
        else:
            await self._send(error(None, INVALID_REQUEST, text))

    async def _take(self, message: Any, reply: Reply) -> None:
        if not isinstance(message, dict) or not (isinstance(message.get("method"), str) or is_answer(message)):
            await self._refuse(message, "the message is not a JSON-RPC message", reply)
        elif is_request(message):
            await self._take_request(message, reply)
        elif is_answer(message):
            session, request_id = self._asked.pop(_number(message.get("id")), (None, None))
            if session is not None and session is self.sessions.current:
                self._tasks.start_soon(self._answer_server, message | {"id": request_id})
        elif message["method"] == "notifications/cancelled":
            await self._cancel(message)
        elif message["method"] == "notifications/initialized":
            await self.sessions.begin(message)
        elif self._notifying.statistics().tasks_waiting < _MOST_REQUESTS:
            self._tasks.start_soon(self._notify, message)
        else:
            log.warning(
                "%s is dropped: %d notifications wait for the server", one_line(message["method"]), _MOST_REQUESTS
            )

    async def _take_request(self, message: Message, reply: Reply) -> None:
        key = dump(message["id"])
        if len(self._requests) >= _MOST_REQUESTS:
            text = f"{_MOST_REQUESTS} requests are waiting for their answers: send this one later"
            await reply(error(message["id"], INTERNAL_ERROR, text))
            return
        if key in self._requests:
            # To end the first one would leave it without an answer; to answer it, it may have been executed.
            text = f"a request with the id {key[:_LONGEST_SHOWN].decode()} has no answer yet, so this one was not sent"
            await self._refuse(message, f"{text}: use another id", reply)
            return
        self._requests[key] = request = _Request(message, modern_version(message))
        self._tasks.start_soon(self._run, key, request, reply)

    async def _run(self, key: bytes, request: _Request, reply: Reply) -> None:
        answer: Message | None = None
        with request.scope:
            try:
                answer = await self._answer(request)
            except ShimError as problem:
                answer = error(request.message["id"], INTERNAL_ERROR, self._upstream.text(problem))
            except Exception as problem:  # noqa: BLE001  an error of ours in one call must not end the others
                log.error("a request failed because of an error in refresher (%s): report it", type(problem).__name__)  # noqa: TRY400  its text can hold arguments
                answer = error(request.message["id"], INTERNAL_ERROR, "refresher failed to send this request")
        del self._requests[key]
        await reply(answer)

    async def _cancel(self, message: Message) -> None:
        params = message.get("params")
        request = self._requests.get(dump(params.get("requestId") if isinstance(params, dict) else None))
        if request is None:
            return
        if request.version is None and request.sent:
            self._tasks.start_soon(self._cancel_at_server, message, request)
        else:
            request.scope.cancel()  # without a session, the end of the request's connection cancels it

    async def _cancel_at_server(self, message: Message, request: _Request) -> None:
        with anyio.move_on_after(_CANCEL_TIMEOUT):
            await self._notify(message)
        request.scope.cancel()

    async def _notify(self, message: Message) -> None:
        """Send a notification of the client, after those before it. In a new session it would mean nothing."""
        async with self._notifying:
            with anyio.move_on_after(_NOTIFY_TIMEOUT):
                failure = await self.sessions.notify(message)
                if failure is not None:
                    log.info("the server did not get %s: %s", one_line(message["method"]), one_line(failure.reason))

    async def _answer_server(self, message: Message) -> None:
        """Send the answer to a request of the server until the server has it, or for the patience."""
        session, patience, failures = self.sessions.current, self._patience, 0
        while True:
            failure = await self.sessions.notify(message)
            if failure is None or session is not self.sessions.current:
                return
            if patience <= 0 or failure.kind not in ("not_sent", "unavailable", "lost"):
                log.warning("the server did not get the answer to its question: %s", one_line(failure.reason))
                return
            pause = min(retry_pause(failures), patience)
            patience, failures = patience - pause, failures + 1
            await anyio.sleep(pause)

    # Requests.

    async def _answer(self, request: _Request) -> Message:
        """Return the answer to a request: that of the server, or an error. Raises a ``ShimError``."""
        message = request.message
        method, patience, failures, renewed = message["method"], self._patience, 0, False
        repeatable = method in _READS or self._tools.only_reads(message)
        while True:
            try:
                outcome = await self._attempt(request)
            except ShimError:
                if patience <= 0 or self._upstream.needs_person():
                    raise
                patience -= _POLL_INTERVAL
                await anyio.sleep(_POLL_INTERVAL)
                continue
            if not isinstance(outcome, Failure):
                self._tools.learn(method, outcome)
                self.sessions.remember(message, outcome)
                return outcome
            server = self._upstream.name()
            match outcome.kind:
                case "rejected" | "insufficient_scope":
                    raise self._upstream.refusal(outcome)
                case "unknown_session" if not renewed:
                    renewed = True
                    continue
                case "unknown_session" | "not_sent":
                    text = f"no connection to {server}: {outcome.reason}; the request was not executed: try again later"
                case _ if repeatable:
                    text = f"no answer from {server}: {outcome.reason}; try again later"
                case _:
                    text = (
                        f"no answer from {server}: {outcome.reason}; the call may have been executed: check that first"
                    )
                    patience = 0.0
            if patience <= 0:
                return error(message["id"], INTERNAL_ERROR, one_line(text))
            pause = min(retry_pause(failures), patience)
            patience, failures = patience - pause, failures + 1
            await anyio.sleep(pause)

    async def _attempt(self, request: _Request) -> Message | Failure:
        """Send a request once. Raises a ``ShimError`` if no token may be sent."""
        message = request.message
        if request.version is not None:
            headers = request_headers(message, request.version) | self._tools.headers(message)
            return await self._upstream.exchange(message, self._upstream.url(), headers, self._from_server)
        if message["method"] == "initialize":
            return await self.sessions.initialize(message)
        session = await self.sessions.live()
        if isinstance(session, Failure):
            return session
        request.sent = True
        return await self.sessions.exchange(session, message)

    # What the server sends.

    async def _from_server(self, message: Message, session: object = None) -> None:
        """Send the client a message of the server, with an id that no other session has used."""
        if is_request(message):
            if session is not self.sessions.current:
                return
            number = next(self._numbers)
            if len(self._asked) >= _MOST_QUESTIONS:
                del self._asked[next(iter(self._asked))]  # the client never answers it
            self._asked[number] = (session, message["id"])
            message = message | {"id": number}
        elif message.get("method") == "notifications/cancelled" and isinstance(params := message.get("params"), dict):
            asked = (session, params.get("requestId"))
            number = next((known for known, each in self._asked.items() if each == asked), 0)
            if number:
                del self._asked[number]
                message = message | {"params": params | {"requestId": number}}
        elif "method" not in message:
            return
        await self._send(message)

    async def _renewed(self, renewed: Renewed) -> None:
        """Withdraw the questions of the session before; the lists of the server may be others now."""
        log.info("the server has begun a new session")
        self._tools.forget()
        for number in list(self._asked):
            del self._asked[number]
            params = {"requestId": number, "reason": "the server has restarted"}
            await self._send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        for kind in renewed.lists_that_change():
            await self._send({"jsonrpc": "2.0", "method": f"notifications/{kind}/list_changed"})


class _Batch:
    """Collects the answers to the requests of a batch, and sends them as one."""

    def __init__(self, requests: int, send: Callable[[object], Awaitable[None]]) -> None:
        self._left = requests
        self._send = send
        self._answers: list[Message] = []

    async def __call__(self, answer: Message | None) -> None:
        self._left -= 1
        if answer is not None:
            self._answers.append(answer)
        if not self._left and self._answers:
            await self._send(self._answers)


def _number(value: object) -> int:
    return value if type(value) is int else 0
