"""What can be read of a JSON object that breaks off, or goes wrong, after its tokens have come. Pure."""

import json
import re
from typing import Any, Final

__all__ = ["members"]

_DECODER: Final = json.JSONDecoder()
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def members(text: str) -> dict[str, Any]:
    """Return the members of the object that ``text`` begins with, as far as each is certainly whole."""
    found: dict[str, Any] = {}
    at = _after_space(text, 1) if text.startswith("{") else len(text)
    while text[at : at + 1] == '"':
        try:
            key, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, at)
            if text[at : at + 1] != ":":
                break
            value, at = _DECODER.raw_decode(text, _after_space(text, at + 1))
        except (ValueError, RecursionError):
            break
        at = _after_space(text, at)
        follows = text[at : at + 1]
        # Only a quote or a bracket shows by itself that a value has ended: a number may go on.
        if follows not in (",", "}") and not (follows == "" and isinstance(value, str | dict | list)):
            break
        found[key] = value
        at = _after_space(text, at + 1) if follows == "," else len(text)
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
