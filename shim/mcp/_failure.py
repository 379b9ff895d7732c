"""Why a request failed: the HTTP client detects it, and the caller reads it from a JSON-RPC error.

The SDK reports a 401 and a 500 to the caller in the same words, but passes the ``data`` of a JSON-RPC error unchanged.
"""

import re
import secrets
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast, get_args

import httpx2
import mcp_types
from mcp import MCPError

from shim._challenge import Refusal

__all__ = ["Failure", "describe", "failure_kind", "refusal_in", "root_cause"]

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

# Random, so that no server can send it.
_DATA_KEY = f"shim.{secrets.token_hex(8)}"

_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_CLOSED = re.compile("peer closed|server disconnected", re.IGNORECASE)
_LONGEST_CHAIN = 20


class Failure(NamedTuple):
    """The kind of a failure, and its reason in words."""

    kind: FailureKind
    reason: str
    refusal: Refusal = Refusal()
    """Which scopes are missing."""

    def as_json_rpc(self, request_id: object) -> dict[str, Any]:
        """Return the JSON-RPC error for the caller of the request."""
        return {"jsonrpc": "2.0", "id": request_id, "error": self.as_error().error.model_dump()}

    def as_error(self) -> MCPError:
        """Return the error for a caller in this process."""
        data = {_DATA_KEY: self.kind, **self.refusal._asdict()}
        return MCPError(mcp_types.INTERNAL_ERROR, self.reason, data)


def failure_kind(error: MCPError) -> FailureKind | None:
    """Return why the request of ``error`` failed; ``None`` if the error is the server's own answer."""
    kind = error.data.get(_DATA_KEY) if isinstance(error.data, dict) else None
    if kind in get_args(FailureKind):
        return cast(FailureKind, kind)
    if error.code == mcp_types.PARSE_ERROR and error.message.startswith("Failed to parse"):
        return "broken"  # the SDK could not read the response
    return "lost" if error.code == mcp_types.CONNECTION_CLOSED else None


def refusal_in(error: MCPError) -> Refusal:
    """Return which scopes are missing, of an error of the kind ``insufficient_scope``."""
    return Refusal(True, tuple(error.data["scopes"]), error.data["description"])


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


def root_cause(error: BaseException) -> BaseException:
    """Return the error inside an exception group: an answer of the server if there is one, else the first error."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(inner) for inner in error.exceptions]
    return next((each for each in causes if isinstance(each, MCPError)), causes[0])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and its causes, the nearest first."""
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        error = root_cause(error)
        yield error
        error = error.__cause__ or error.__context__
