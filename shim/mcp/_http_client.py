"""The HTTP client of one MCP session: a broken connection ends one request, not the session.

In the SDK's transport, an exception of one request ends all calls. So this client raises no exceptions for a POST: the
caller of the request gets the failure as a JSON-RPC error.
"""

import functools
import json
from typing import Any

import anyio
import httpx2
import mcp_types
from anyio.abc import TaskGroup

from shim._backoff import retry_pause
from shim._bearer import origin_of_request
from shim._changes import permanent_error
from shim._failure import Failure, FailureKind, has_type, is_event_stream, json_object, send_once
from shim._server_stream import MAX_REDIRECTS, endless_response, redirect_within_origin
from shim.httpx2 import BearerAuth
from shim.mcp._connection import CURRENT_CALL, Call
from shim.mcp._failure import as_json_rpc

__all__ = ["SessionHTTPClient"]

_JSON = "application/json"
_EXECUTED = ("tools/call", "ping")

# Seconds for a notification; meanwhile the SDK sends nothing else. The timeout for a cancellation is short.
_CANCEL_TIMEOUT = 1.0
_NOTIFY_TIMEOUT = 30.0

_ANSWER_TIMEOUT = 10.0
"""Seconds for one attempt to send an answer."""
_TEMPORARY: tuple[FailureKind, ...] = ("not_sent", "unavailable", "lost", "broken", "rejected")

_Outcome = httpx2.Response | Failure


class SessionHTTPClient(httpx2.AsyncClient):
    """Sends the requests of the SDK's streamable HTTP transport.

    ``tasks``: for answers to the server, which may outlast their request. At the end of the session they are cancelled.
    """

    def __init__(self, tasks: TaskGroup, **options: Any) -> None:
        super().__init__(**options)
        self._tasks = tasks
        self._discover_failure: Failure | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request. A POST that fails returns a JSON-RPC error as its response."""
        if request.method == "GET" and "last-event-id" not in request.headers:
            # With this header, the SDK awaits the rest of one response.
            return await endless_response(request, functools.partial(super().send, **options), _report)
        if request.method == "DELETE" and isinstance(self.auth, BearerAuth):
            # The end of a session needs no newer token: it is neither demanded nor awaited.
            source, origin = self.auth.source, origin_of_request(request.url)
            if (authorization := source.authorization(source.current(), origin)) is not None:
                request.headers["Authorization"] = authorization
            return await super().send(request, **{**options, "auth": httpx2.Auth()})
        if request.method != "POST":
            return await super().send(request, **options)
        await request.aread()  # the request of a redirect is not read yet, and could not be sent again
        message = json_object(request.content) or {}
        method = message.get("method")
        request_id = None if method is None else message.get("id")  # a notification has no id
        if method == "initialize" and self._discover_failure is not None:
            # The SDK falls back to the older protocol, for the life of the session; an outage is no reason for that.
            return _failed(request, request_id, self._discover_failure)
        if request_id is not None:
            return await self._post(request, request_id, method, options)
        if method is None and (call := CURRENT_CALL.get()) is not None:
            # In the background: the SDK sends nothing else until there is a response.
            self._tasks.start_soon(self._deliver_answer, request, message, call, options)
            return httpx2.Response(202, request=request)
        with anyio.move_on_after(_CANCEL_TIMEOUT if method == "notifications/cancelled" else _NOTIFY_TIMEOUT):
            return await self._post(request, request_id, method, options)
        return _failed(request, request_id, Failure("lost", "the server did not accept the notification in time"))

    async def _post(
        self, request: httpx2.Request, request_id: object, method: object, options: dict[str, Any]
    ) -> httpx2.Response:
        call = CURRENT_CALL.get()
        if call is not None and call.scope is not None and request_id is not None and call.requests > 1:
            # A later request of a call carries the answers to the server's questions, which a person would give again.
            kinds: tuple[FailureKind, ...] = ("not_sent", "unavailable", "lost") if call.reads else ("not_sent",)
            outcome = await self._send_again(request, call, kinds, options)
        else:
            outcome = await self._send_once(request, options)
        if request_id is not None and isinstance(outcome, httpx2.Response):
            outcome = _answer_to(request, request_id, outcome)
        failure = outcome if isinstance(outcome, Failure) else None
        if method == "server/discover":
            # Some servers answer 500 to a request that they do not know: then the older protocol is right.
            self._discover_failure = None if failure is None or failure.kind == "broken" else failure
        if isinstance(outcome, Failure):
            return _failed(request, request_id, outcome)
        if method in _EXECUTED and outcome.is_success and call is not None:
            call.executed = True
        return outcome

    async def _deliver_answer(
        self, request: httpx2.Request, message: dict[str, Any], call: Call, options: dict[str, Any]
    ) -> None:
        """Send the answer to a question of the server until the server has it; otherwise end the call that waits."""
        failure: Failure | None = None
        with anyio.CancelScope() as scope:
            call.answers.add(scope)
            try:
                failure = await self._send_answer(request, call.patience, options)
            finally:
                call.answers.discard(scope)
        if failure is not None and message.get("result") != {}:  # nothing waits for the answer to a ping
            reason = f"the server did not get the answer to its question: {failure.reason}"
            call.end(Failure("undelivered", reason))

    async def _send_answer(self, request: httpx2.Request, patience: float, options: dict[str, Any]) -> Failure | None:
        """Send an answer, again after failures; return why the server does not have it, or ``None``."""
        failures, redirects, may_have_it = 0, 0, False
        while True:
            outcome: _Outcome = Failure("lost", "timed out")
            started = anyio.current_time()
            with anyio.move_on_after(_ANSWER_TIMEOUT):
                outcome = await self._send_once(request, options)
            patience -= anyio.current_time() - started
            if isinstance(outcome, httpx2.Response):
                await outcome.aclose()
                if (target := redirect_within_origin(outcome)) is not None and redirects < MAX_REDIRECTS:
                    await target.aread()
                    request, redirects = target, redirects + 1
                    continue
                status = outcome.status_code
                # After a lost response, the server may refuse an answer that it has already.
                if status < 300 or (may_have_it and 400 <= status < 500 and status != 408):
                    return None
                failure = Failure("lost", f"the server answered {status}")
                is_final = status < 500 and status != 408
            else:
                failure = outcome
                is_final = failure.kind not in _TEMPORARY or self._needs_person()
                may_have_it = may_have_it or failure.kind == "lost"
            if is_final or patience <= 0:
                return failure
            pause = min(retry_pause(failures), patience)
            failures, patience = failures + 1, patience - pause
            await anyio.sleep(pause)

    def _needs_person(self) -> bool:
        """Whether there is no token any more that the server may accept."""
        token = self.auth.source.current() if isinstance(self.auth, BearerAuth) else None
        return token is not None and permanent_error(token) is not None

    async def _send_again(
        self, request: httpx2.Request, call: Call, kinds: tuple[FailureKind, ...], options: dict[str, Any]
    ) -> _Outcome:
        """Send a request of ``call``, again after failures of ``kinds``, as long as the call may wait."""
        failures = 0
        while True:
            outcome = await self._send_once(request, options)
            if not isinstance(outcome, Failure) or outcome.kind not in kinds or call.patience <= 0:
                return outcome
            pause = min(retry_pause(failures), call.patience)
            failures += 1
            call.patience -= pause
            await anyio.sleep(pause)

    async def _send_once(self, request: httpx2.Request, options: dict[str, Any]) -> _Outcome:
        """Send ``request``; return its response, which is read if it is no stream, or why there is none."""
        return await send_once(functools.partial(super().send, **options), request)


def _report(failure: Failure | None, sent_at: float) -> None:
    """Record what happened to the stream of the server, which was requested at ``sent_at``."""
    if (call := CURRENT_CALL.get()) is not None:
        call.connection.stream_changed(failure, sent_at)


def _answer_to(request: httpx2.Request, request_id: object, response: httpx2.Response) -> _Outcome:
    """Return ``response`` with the id of its request, or the failure if it is no JSON-RPC response.

    With another id, the SDK would wait forever.
    """
    if not response.is_success or is_event_stream(response):
        return response
    message = json_object(response.content) if has_type(response, _JSON) else None
    if message is None or message.keys().isdisjoint(("result", "error")):
        return Failure("broken", f"the server's response is not a JSON-RPC response ({response.status_code})")
    if str(message.get("id")) == str(request_id):
        return response
    if "error" not in message:
        error = {"code": mcp_types.INVALID_REQUEST, "message": "the server answered a different request"}
        message = {"jsonrpc": "2.0", "error": error}
    return _response(request, 200, message | {"id": request_id})


def _failed(request: httpx2.Request, request_id: object, failure: Failure) -> httpx2.Response:
    """Return a response that reports ``failure``. The SDK ignores the response to a notification."""
    return _response(request, 500, as_json_rpc(failure, request_id))


def _response(request: httpx2.Request, status: int, message: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": _JSON}, content=json.dumps(message), request=request)
