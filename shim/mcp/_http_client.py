"""The HTTP client of one MCP session: a connection that breaks ends one request, and not the session.

The SDK's transport ends every call in flight when one request raises; so none does. What became of it is told in a
JSON-RPC error to its caller alone.
"""

import json
import re
from typing import Any

import anyio
import httpx2
import mcp_types

from shim.mcp._failure import COURSE, Fate, told

__all__ = ["Line"]

_JSON = "application/json"
_GATEWAY_STATUSES = (429, 502, 503, 504)
_ABOUT_SESSION = re.compile(rb"\bsession\b", re.IGNORECASE)
_SESSION_HEADER = "mcp-session-id"

# Seconds for what wants no answer: the SDK sends nothing else meanwhile. To cancel is a courtesy.
_TO_CANCEL = 1.0
_TO_NOTIFY = 30.0


class Line(httpx2.AsyncClient):
    """Sends the requests of the SDK's streamable HTTP transport."""

    _undiscovered: tuple[Fate, str] | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; for a POST, return what became of it where there is no answer."""
        if request.method != "POST":
            return await super().send(request, **options)
        await request.aread()  # one that follows a redirect was not: it could not be sent again
        request_id, method = _request_in(request)
        if method == "initialize" and self._undiscovered is not None:
            # An outage must not be taken for a server of the older protocol, for as long as the session lives.
            return _answer(request, request_id, *self._undiscovered)
        if request_id is None:
            with anyio.move_on_after(_TO_CANCEL if method == "notifications/cancelled" else _TO_NOTIFY):
                return await self._post(request, request_id, method, options)
            return _answer(request, request_id, "lost", "the server does not take it")
        return await self._post(request, request_id, method, options)

    async def _post(
        self, request: httpx2.Request, request_id: object, method: object, options: dict[str, Any]
    ) -> httpx2.Response:
        progress = _Progress()
        request.extensions = {**request.extensions, "trace": progress.trace}
        judged: tuple[Fate, str] | None
        try:
            response = await super().send(request, **options)
            if response.status_code >= 400 or not _is_stream(response):
                await response.aread()
        except Exception as error:  # noqa: BLE001  an exception here would end every other call too
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            judged = ("lost" if progress.in_flight else "not_sent"), words
        else:
            judged = _judge(request, response)
        if method == "server/discover":
            self._undiscovered = judged
        if judged is not None:
            return _answer(request, request_id, *judged)
        if method == "tools/call" and response.is_success and (course := COURSE.get()) is not None:
            course.executed = True
        return response if request_id is None else _to_its_caller(request, request_id, response)


class _Progress:
    """Whether a request is on its way without an answer: it may be sent more than once, after a refusal."""

    def __init__(self) -> None:
        self.in_flight = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            self.in_flight = True
        elif event.endswith("receive_response_headers.complete") and 401 in info.get("return_value", ()):
            self.in_flight = False  # refused, and perhaps sent again


def _request_in(request: httpx2.Request) -> tuple[object, object]:
    """Return the JSON-RPC id and the method; the id is ``None`` for what wants no answer."""
    try:
        message = json.loads(request.content)
    except ValueError:
        return None, None
    if not isinstance(message, dict):
        return None, None
    method = message.get("method")
    return (None if method is None else message.get("id")), method


def _is_stream(response: httpx2.Response) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith("text/event-stream"))


def _judge(request: httpx2.Request, response: httpx2.Response) -> tuple[Fate, str] | None:
    """Return what an answer says that is none of the server's to the call; ``None`` where it is."""
    status = response.status_code
    if status == 401:
        return "rejected", "the server refuses the access token (401)"
    if status < 400:
        return None
    error = _error_in(response)
    if status in (400, 404) and _SESSION_HEADER in request.headers and error != mcp_types.METHOD_NOT_FOUND:
        # 404 by the specification; others say 400 and words.
        if status == 404 or (error != mcp_types.INVALID_PARAMS and _ABOUT_SESSION.search(response.content)):
            return "unknown_session", f"the server does not know this MCP session ({status})"
        return None
    if status in _GATEWAY_STATUSES and error is None:
        return "away", f"the server is away ({status})"
    return None


def _error_in(response: httpx2.Response) -> int | None:
    """Return the code of the JSON-RPC error in a body, ``None`` where there is none."""
    try:
        code = json.loads(response.content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _to_its_caller(request: httpx2.Request, request_id: object, response: httpx2.Response) -> httpx2.Response:
    """Return an answer with the id of its request: for one with another, or with none, the SDK would wait for ever."""
    if response.status_code != 200 or not response.headers.get("content-type", "").lower().startswith(_JSON):
        return response
    try:
        message = json.loads(response.content)
    except ValueError:
        return response
    if not isinstance(message, dict) or str(message.get("id")) == str(request_id):
        return response
    if "error" not in message:
        error = {"code": mcp_types.INVALID_REQUEST, "message": "the server has answered something else"}
        message = {"jsonrpc": "2.0", "error": error}
    message["id"] = request_id
    return httpx2.Response(200, headers={"content-type": _JSON}, content=json.dumps(message), request=request)


def _answer(request: httpx2.Request, request_id: object, fate: Fate, words: str) -> httpx2.Response:
    """Return an answer in the server's place. The SDK drops one to a notification."""
    return httpx2.Response(
        500,
        headers={"content-type": _JSON},
        content=told(request_id, fate, words),
        request=request,
    )
