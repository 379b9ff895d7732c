"""The first event of the old SSE transport names the address for messages: put it under the prefix."""

import re
from collections.abc import Callable
from typing import Final

__all__ = ["EndpointEvent", "LeadsAway"]

_LONGEST: Final = 16 * 1024
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z))(?:\r\n|\n|\r)")
_LINE: Final = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")


class LeadsAway(Exception):
    """An ``endpoint`` event names an address outside the grant's origins."""


class EndpointEvent:
    """Passes a stream on, and changes only the address in an ``endpoint`` event that is its first event.

    It holds back no more than that one event, and at most 16 KiB.
    """

    def __init__(self, relocate: Callable[[str], str | None]) -> None:
        self._relocate = relocate
        self._held = b""
        self.done = False
        """Whether all that follows passes unchanged."""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on after ``data``. Raises ``LeadsAway``."""
        if self.done:
            return data
        held = self._held + data
        passed = b""
        while (end := _END.search(held)) is not None:
            event, held = held[: end.end()], held[end.end() :]
            if _is_empty(event):
                passed += event  # comments that keep the connection alive
                continue
            self.done, self._held = True, b""
            return passed + self._changed(event) + held
        if len(held) > _LONGEST:
            self.done, self._held = True, b""
            return passed + held
        self._held = held
        return passed

    def rest(self) -> bytes:
        """Return what was held back at the end of the stream: an incomplete event, which no client uses."""
        return self._held

    def _changed(self, event: bytes) -> bytes:
        lines = _LINE.findall(event)
        if all(_field(line)[1] != b"endpoint" for line, _ in lines if _field(line)[0] == b"event"):
            return event
        return b"".join(self._line(line) + end for line, end in lines)

    def _line(self, line: bytes) -> bytes:
        name, value = _field(line)
        if name != b"data":
            return line
        address = self._relocate(value.decode("utf-8", "replace"))
        if address is None:
            raise LeadsAway
        return b"data: " + address.encode()


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
    return name, value.removeprefix(b" ")


def _is_empty(event: bytes) -> bool:
    """Whether lines are comments alone, and no event."""
    return all(not line or line.startswith(b":") for line, _ in _LINE.findall(event))
