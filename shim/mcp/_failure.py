"""Failures as errors of the SDK: the HTTP client detects a failure, and the caller reads it from a JSON-RPC error.

The SDK reports a 401 and a 500 to the caller in the same words, but passes the ``data`` of a JSON-RPC error unchanged.
"""

import secrets
from typing import Any, cast, get_args

import mcp_types
from mcp import MCPError

from shim._challenge import Refusal
from shim._failure import Failure, FailureKind

__all__ = ["as_error", "as_json_rpc", "failure_kind", "refusal_in", "root_cause"]

# Random, so that no server can send it.
_DATA_KEY = f"shim.{secrets.token_hex(8)}"


def as_json_rpc(failure: Failure, request_id: object) -> dict[str, Any]:
    """Return the JSON-RPC error for the caller of the request."""
    return {"jsonrpc": "2.0", "id": request_id, "error": as_error(failure).error.model_dump()}


def as_error(failure: Failure) -> MCPError:
    """Return the error for a caller in this process."""
    data = {_DATA_KEY: failure.kind, **failure.refusal._asdict()}
    return MCPError(mcp_types.INTERNAL_ERROR, failure.reason, data)


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


def root_cause(error: BaseException) -> BaseException:
    """Return the error inside an exception group: an answer of the server if there is one, else the first error."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(inner) for inner in error.exceptions]
    return next((each for each in causes if isinstance(each, MCPError)), causes[0])
