"""What became of one request: found out where it was sent, told in the error that the SDK hands to its caller.

The SDK folds a 401 into the same words as a 500; an error's ``data`` goes through it unchanged.
"""

import json
import secrets
from contextvars import ContextVar
from typing import Literal, cast, get_args

import mcp_types
from mcp import MCPError

__all__ = ["COURSE", "Course", "Fate", "fate_of", "leaf", "told"]

Fate = Literal["rejected", "unknown_session", "not_sent", "away", "lost"]
"""The token was refused; the server does not know the MCP session; nothing was sent; a gateway answered in the
server's place; the request left and its answer was lost."""

# New in each process: no server can say it.
_MARK = f"shim.{secrets.token_hex(8)}"


class Course:
    """What the requests of one call have come to: after a tool was called, the SDK may ask for more, and fail."""

    def __init__(self) -> None:
        self.executed = False


# The SDK's streams carry the context of the caller to where its request is sent.
COURSE: ContextVar[Course | None] = ContextVar("shim.mcp.course", default=None)


def told(request_id: object, fate: Fate, words: str) -> bytes:
    """Return the JSON-RPC error that tells ``fate`` to the caller of the request."""
    error = {"code": mcp_types.INTERNAL_ERROR, "message": words, "data": {_MARK: fate}}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}).encode()


def fate_of(error: MCPError) -> Fate | None:
    """Return what became of the request that ended with ``error``; ``None`` where the server itself has answered."""
    fate = error.data.get(_MARK) if isinstance(error.data, dict) else None
    if fate in get_args(Fate):
        return cast(Fate, fate)
    return "lost" if error.code == mcp_types.CONNECTION_CLOSED else None


def leaf(error: BaseException) -> BaseException:
    """Return what an exception group is about: an answer of the server if there is one, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [leaf(inner) for inner in error.exceptions]
    return next((one for one in leaves if isinstance(one, MCPError)), leaves[0])
