"""Why an HTTP request to an MCP server failed, and whether it can have been executed."""

import json
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal, NamedTuple

import httpx2

from shim._challenge import Refusal, refusal_of

__all__ = [
    "Failure",
    "FailureKind",
    "describe",
    "failure_in",
    "has_type",
    "is_event_stream",
    "json_object",
    "send_once",
]

FailureKind = Literal[
    "rejected", "insufficient_scope", "unknown_session", "not_sent", "unavailable", "lost", "broken", "undelivered"
]
"""
- ``rejected``: the server rejected the access token.
- ``insufficient_scope``: the access token lacks a scope for this request.
- ``unknown_session``: the server does not know the MCP session, for example after a restart.
- ``not_sent``: no byte of the request was sent.
- ``unavailable``: a gateway answered instead of the server.
- ``lost``: the request was sent, and its response was lost.
- ``broken``: the server answered, but not with a JSON-RPC response.
- ``undelivered``: the server did not get the answer to a question that it asked during the call.
"""

_METHOD_NOT_FOUND = -32601
_INVALID_PARAMS = -32602
_EVENT_STREAM = "text/event-stream"
_GATEWAY_STATUSES = (429, 502, 503, 504)
_SESSION_WORD = re.compile(rb"\bsession\b", re.IGNORECASE)
_SESSION_HEADER = "mcp-session-id"

_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_CLOSED = re.compile("peer closed|server disconnected", re.IGNORECASE)
_LONGEST_CHAIN = 20


class Failure(NamedTuple):
    """The kind of a failure, and its reason in words."""

    kind: FailureKind
    reason: str
    refusal: Refusal = Refusal()
    """Which scopes are missing."""


async def send_once(
    send: Callable[[httpx2.Request], Awaitable[httpx2.Response]],
    request: httpx2.Request,
    read: Callable[[httpx2.Response], Awaitable[object]] = httpx2.Response.aread,
) -> httpx2.Response | Failure:
    """Send ``request``; return its response, which ``read`` has read if it is no stream, or why there is none."""
    in_flight = False

    async def trace(event: str, _info: dict[str, Any]) -> None:
        nonlocal in_flight
        if event.endswith("send_request_headers.started"):
            in_flight = True
        elif event.endswith("connect_tcp.started"):
            in_flight = False  # what was sent before has been answered, with a rejection of the token

    request.extensions = {**request.extensions, "trace": trace}
    try:
        response = await send(request)
        if response.status_code >= 400 or not is_event_stream(response):
            await read(response)
    except Exception as error:  # noqa: BLE001  an exception would end all other calls
        return Failure("lost" if in_flight else "not_sent", describe(error))
    return failure_in(request, response) or response


def failure_in(request: httpx2.Request, response: httpx2.Response) -> Failure | None:
    """Return the failure that a response reports; ``None`` if the response is the server's answer to the call."""
    status = response.status_code
    authorization = request.headers.get("authorization", "")
    refusal = refusal_of(status, response.headers.get_list("www-authenticate"), authorization)
    if refusal is not None and refusal.lacks_scope:
        return Failure("insufficient_scope", f"the access token lacks a scope ({status})", refusal)
    if refusal is not None or status == 401:
        return Failure("rejected", f"the server rejects the access token ({status})")
    if status < 400:
        return None
    error = _error_code(response)
    if status in (400, 404) and _SESSION_HEADER in request.headers and error != _METHOD_NOT_FOUND:
        # The specification says 404. Some servers answer 400 and mention the session in the body.
        if status == 404 or (error != _INVALID_PARAMS and _SESSION_WORD.search(response.content)):
            return Failure("unknown_session", f"the server does not know this MCP session ({status})")
        return None
    if status in _GATEWAY_STATUSES and error is None:
        return Failure("unavailable", f"the server is not available ({status})")
    if status >= 500 and error is None:
        return Failure("broken", f"the server failed ({status})")
    return None


def _error_code(response: httpx2.Response) -> int | None:
    """Return the code of the JSON-RPC error in a response, ``None`` if there is none."""
    error = (json_object(response.content) or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else None


def json_object(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object in ``content``; ``None`` if it is not one."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_event_stream(response: httpx2.Response) -> bool:
    """Whether ``response`` is a stream of events."""
    return response.is_success and has_type(response, _EVENT_STREAM)


def has_type(response: httpx2.Response, content_type: str) -> bool:
    """Whether ``response`` declares this ``content_type``."""
    return bool(response.headers.get("content-type", "").lower().startswith(content_type))


def describe(error: BaseException) -> str:
    """Return the reason of ``error`` for a person: no class names, no error numbers."""
    chain = list(_causes(error))
    for cause in chain:
        match cause:
            case socket.gaierror(errno=socket.EAI_AGAIN):
                return "the name server does not answer"
            case socket.gaierror():
                return "no such host"
            case ConnectionRefusedError():
                return "connection refused"
            case ssl.SSLCertVerificationError():
                return f"the certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError():
                return "the server does not speak TLS: is it http://?" if cause.reason in _NO_TLS else "TLS failed"
            case TimeoutError() | httpx2.TimeoutException():
                return "timed out"
            case httpx2.RemoteProtocolError() if _CLOSED.match(str(cause)):
                return "the server closed the connection"
            case OSError(strerror=str() as text):
                return f"{text}: {cause.filename}" if cause.filename else text
            case _:
                pass
    return next((text for cause in chain if (text := str(cause))), "the connection broke")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and its causes, the nearest first; of a group, the first error."""
    for _ in range(_LONGEST_CHAIN):
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
