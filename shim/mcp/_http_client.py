"""The HTTP client of one MCP session: a broken connection ends one request, not the session.

In the SDK's transport, an exception of one request ends all calls. So this client raises no exceptions for a POST: the
caller of the request gets the failure as a JSON-RPC error.
"""

import json
import re
from typing import Any

import anyio
import httpx2
import mcp_types

from shim.mcp._connection import CURRENT_CALL
from shim.mcp._failure import Failure, describe

__all__ = ["SessionHTTPClient"]

_JSON = "application/json"
_GATEWAY_STATUSES = (429, 502, 503, 504)
_SESSION_WORD = re.compile(rb"\bsession\b", re.IGNORECASE)
_SESSION_HEADER = "mcp-session-id"

# Seconds for a notification; meanwhile the SDK sends nothing else. A cancellation is not worth a long wait.
_CANCEL_TIMEOUT = 1.0
_NOTIFY_TIMEOUT = 30.0


class SessionHTTPClient(httpx2.AsyncClient):
    """Sends the requests of the SDK's streamable HTTP transport."""

    _discover_failure: Failure | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request. A POST that fails returns a JSON-RPC error as its response."""
        if request.method != "POST":
            return await super().send(request, **options)
        await request.aread()  # the request of a redirect is not read yet, and could not be sent again
        request_id, method = _parse(request)
        if method == "initialize" and self._discover_failure is not None:
            # The SDK falls back to the older protocol, for the life of the session; an outage is no reason for that.
            return _failed(request, request_id, self._discover_failure)
        if request_id is not None:
            return await self._post(request, request_id, method, options)
        with anyio.move_on_after(_CANCEL_TIMEOUT if method == "notifications/cancelled" else _NOTIFY_TIMEOUT):
            return await self._post(request, request_id, method, options)
        return _failed(request, request_id, Failure("lost", "the server did not accept the notification in time"))

    async def _post(
        self, request: httpx2.Request, request_id: object, method: object, options: dict[str, Any]
    ) -> httpx2.Response:
        sending = _Sending()
        request.extensions = {**request.extensions, "trace": sending.trace}
        try:
            response = await super().send(request, **options)
            if response.status_code >= 400 or not _has_type(response, "text/event-stream"):
                await response.aread()
        except Exception as error:  # noqa: BLE001  an exception would end all other calls
            failure: Failure | None = Failure("lost" if sending.in_flight else "not_sent", describe(error))
        else:
            failure = _failure_in(request, response)
        if method == "server/discover":
            self._discover_failure = failure
        if failure is not None:
            return _failed(request, request_id, failure)
        if method == "tools/call" and response.is_success and (call := CURRENT_CALL.get()) is not None:
            call.executed = True
        return response if request_id is None else _with_id(request, request_id, response)


class _Sending:
    """Whether a request was sent and not answered. After a 401 the request is sent again, and the state starts over."""

    def __init__(self) -> None:
        self.in_flight = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            self.in_flight = True
        elif event.endswith("receive_response_headers.complete") and 401 in info.get("return_value", ()):
            self.in_flight = False


def _parse(request: httpx2.Request) -> tuple[object, object]:
    """Return the JSON-RPC id and the method of a request; the id of a notification is ``None``."""
    try:
        message = json.loads(request.content)
    except ValueError:
        return None, None
    if not isinstance(message, dict):
        return None, None
    method = message.get("method")
    return (None if method is None else message.get("id")), method


def _has_type(response: httpx2.Response, content_type: str) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith(content_type))


def _failure_in(request: httpx2.Request, response: httpx2.Response) -> Failure | None:
    """Return the failure that a response reports; ``None`` if the response is the server's answer to the call."""
    status = response.status_code
    if status == 401:
        return Failure("rejected", "the server rejects the access token (401)")
    if status < 400:
        return None
    error = _error_code(response)
    if status in (400, 404) and _SESSION_HEADER in request.headers and error != mcp_types.METHOD_NOT_FOUND:
        # The specification says 404. Some servers answer 400 and mention the session in the body.
        if status == 404 or (error != mcp_types.INVALID_PARAMS and _SESSION_WORD.search(response.content)):
            return Failure("unknown_session", f"the server does not know this MCP session ({status})")
        return None
    if status in _GATEWAY_STATUSES and error is None:
        return Failure("unavailable", f"the server is not available ({status})")
    return None


def _error_code(response: httpx2.Response) -> int | None:
    """Return the code of the JSON-RPC error in a response, ``None`` if there is none."""
    try:
        code = json.loads(response.content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _with_id(request: httpx2.Request, request_id: object, response: httpx2.Response) -> httpx2.Response:
    """Return ``response`` with the id of its request; with another id, the SDK would wait forever."""
    if response.status_code != 200 or not _has_type(response, _JSON):
        return response
    try:
        message = json.loads(response.content)
    except ValueError:
        return response
    if not isinstance(message, dict) or str(message.get("id")) == str(request_id):
        return response
    if "error" not in message:
        error = {"code": mcp_types.INVALID_REQUEST, "message": "the server answered a different request"}
        message = {"jsonrpc": "2.0", "error": error}
    message["id"] = request_id
    return httpx2.Response(200, headers={"content-type": _JSON}, content=json.dumps(message), request=request)


def _failed(request: httpx2.Request, request_id: object, failure: Failure) -> httpx2.Response:
    """Return a response that reports ``failure``. The SDK ignores the response to a notification."""
    return httpx2.Response(
        500, headers={"content-type": _JSON}, content=failure.as_json_rpc(request_id), request=request
    )
