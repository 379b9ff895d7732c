"""JSON-RPC messages: what the bridge reads in them, and the errors that it writes itself. Pure."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "BATCHES",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "LONGEST",
    "PARSE_ERROR",
    "Message",
    "dump",
    "error",
    "is_answer",
    "is_request",
    "modern_version",
    "parse",
    "request_headers",
    "responses_in",
]

Message = dict[str, Any]

LONGEST: Final = 32 * 1024 * 1024
"""The most bytes of a message, in both directions."""
BATCHES: Final = "2025-03-26"
"""The protocol version in which a message can be an array."""

_DEEPER: Final = 1000
"""Levels by which a message may be nested deeper than what could just be parsed, from another place in the program."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INTERNAL_ERROR: Final = -32603

_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_NAMED_BY: Final[Mapping[str, str]] = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def parse(data: bytes | str) -> Any:
    """Return the JSON value in ``data``. Raises ``ValueError`` if it is not JSON."""
    try:
        return json.loads(data, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("too many levels") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def dump(message: object) -> bytes:
    """Return ``message`` as JSON, in one line of ASCII."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + _DEEPER)
    try:
        return json.dumps(message, separators=(",", ":")).encode("ascii")
    finally:
        sys.setrecursionlimit(limit)


def error(request_id: object, code: int, text: str) -> Message:
    """Return the error that answers the request ``request_id``."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}


def is_request(message: Message) -> bool:
    """Whether ``message`` must be answered."""
    return "method" in message and message.get("id") is not None


def is_answer(message: Message) -> bool:
    """Whether ``message`` answers a request."""
    return "method" not in message and ("result" in message or "error" in message)


def responses_in(value: Any) -> list[Message]:
    """Return the messages in what a server sent: one, or an array of them."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]


def _params(message: Message) -> Message:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def modern_version(message: Message) -> str | None:
    """Return the protocol version that ``message`` itself names: it needs no session then. ``None``: it names none."""
    meta = _params(message).get("_meta")
    version = meta.get(_VERSION_KEY) if isinstance(meta, dict) else None
    return version if isinstance(version, str) else None


def request_headers(message: Message, version: str | None) -> dict[str, str]:
    """Return the HTTP headers that repeat parts of ``message``, for a message that needs no session."""
    if version is None:
        return {}
    method = str(message.get("method"))
    headers = {"mcp-protocol-version": version, "mcp-method": method}
    name = _params(message).get(_NAMED_BY.get(method, ""))
    if isinstance(name, str):
        headers["mcp-name"] = _header_value(name)
    return {key: value for key, value in headers.items() if value.isascii() and value.isprintable()}


def _header_value(text: str) -> str:
    if text.isascii() and text.isprintable() and text == text.strip() and not text.startswith("=?"):
        return text
    import base64

    return f"=?base64?{base64.b64encode(text.encode('utf-8', 'replace')).decode('ascii')}?="
