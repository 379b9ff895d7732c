"""JSON-RPC messages: what the bridge reads in them, and the errors that it writes itself. Pure."""

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

__all__ = [
    "BATCHES",
    "CUT",
    "EDGE",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "LONGEST",
    "PARSE_ERROR",
    "Message",
    "dump",
    "error",
    "find_id",
    "is_answer",
    "is_id",
    "is_request",
    "modern_version",
    "parse",
    "request_headers",
    "responses_in",
]

Message = dict[str, Any]

LONGEST: Final = 32 * 1024 * 1024
"""The most bytes of a message, in both directions."""
EDGE: Final = 4096
"""The bytes at the start and at the end of a line in which ``find_id`` looks for an id."""
CUT: Final = b"\0\n"
"""Stands for the middle of a line that is too long. No line contains it, and no JSON."""
BATCHES: Final = "2025-03-26"
"""The protocol version in which a message can be an array."""

_DEEPER: Final = 1000
"""Levels by which a message may be nested deeper than what could just be parsed, from another place in the program."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INTERNAL_ERROR: Final = -32603

_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_NAMED_BY: Final[Mapping[str, str]] = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


# The possessive quantifiers keep the matches linear.
_TEXT: Final = rb'"(?:[^"\\]|\\.)*+"'
_PAIR: Final = rb"(%b)\s*+:\s*+(%b|[^\s\"{}\[\],:]++)\s*+" % (_TEXT, _TEXT)
_FIRST_PAIR: Final = re.compile(rb"\s*+[{,]\s*+%b(?=[,}])" % _PAIR)
_LAST_ID: Final = re.compile(rb',\s*+(?="id")%b(?:,\s*+%b)*+\}\s*\Z' % (_PAIR, _PAIR))


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


def is_id(value: object) -> TypeGuard[str | float]:
    """Whether ``value`` can be the id of a request."""
    return type(value) in (str, int) or (type(value) is float and math.isfinite(value))


def find_id(line: bytes) -> str | float | None:
    """Return the id of the request in a line that cannot be parsed; ``None`` if it is not clear.

    The id stands before or after what has braces or brackets, as clients write it. The line must also have its method
    before that: the id of an answer is one of the server, and could be that of a call of the client.
    """
    pairs: dict[bytes, bytes] = {}
    start, at = line[:EDGE], 0
    while (pair := _FIRST_PAIR.match(start, at)) is not None:
        pairs[pair[1]], at = pair[2], pair.end()
    if b'"method"' not in pairs:
        return None
    if b'"id"' not in pairs and (last := _LAST_ID.search(line[-EDGE:])) is not None:
        pairs[b'"id"'] = last[2]
    try:
        found = json.loads(pairs.get(b'"id"', b"null"))
    except ValueError:
        return None
    return found if is_id(found) else None


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
