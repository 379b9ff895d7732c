"""An ``endpoint`` event of the old SSE transport names the address for messages: put it under the prefix."""

import re
from collections.abc import Callable
from typing import Final

__all__ = ["EndpointEvents", "LeadsAway"]

_LONGEST: Final = 16 * 1024
_LINE: Final = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_LONGEST_NAME: Final = len(_BYTE_ORDER_MARK + b"event")


class LeadsAway(Exception):
    """An ``endpoint`` event names an address outside the grant's origins, or is none that the gateway understands."""


class EndpointEvents:
    """Passes a stream on, and changes only the addresses in its ``endpoint`` events.

    Clients use each of these events, wherever in the stream it is. Of an unfinished line, it holds back the name of the
    field, the type of an event, and the address of an ``endpoint`` event: at most 16 KiB, and of other lines nothing.
    """

    def __init__(self, relocate: Callable[[str], str | None]) -> None:
        self._relocate = relocate
        self._held = b""
        self._ignored = _BYTE_ORDER_MARK
        """What a client removes from the start of the line: of the first line only."""
        self._after_return = False
        """Whether the last line ended with a carriage return, to which a line feed can belong."""
        self._passing = False
        """Whether the start of this line has passed unchanged."""
        self._is_endpoint = False
        """Whether this event is an ``endpoint`` event so far."""
        self._data_passed = False
        """Whether data of this event has passed unchanged."""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on after ``data``. Raises ``LeadsAway``."""
        passed = b""
        if self._after_return and data:
            self._after_return = False
            if data.startswith(b"\n"):
                passed, data = b"\n", data[1:]
        pieces = [passed]
        held, self._held = self._held + data, b""
        for match in _LINE.finditer(held):
            line, end = match.groups()
            if end:
                pieces += self._passed(line), end
                self._after_return = end == b"\r" and match.end() == len(held)
            elif self._passing or self._is_other(line):
                pieces.append(line)
            elif len(line) > _LONGEST:
                raise LeadsAway
            elif line:
                self._held = line
        return b"".join(pieces)

    def rest(self) -> bytes:
        """Return what was held back at the end of the stream. Raises ``LeadsAway``."""
        return self._passed(self._held)

    def _is_other(self, line: bytes) -> bool:
        """Whether a line that has begun passes unchanged, however it continues."""
        name, colon, _ = self._field(line)
        if (not colon and len(line) <= _LONGEST_NAME) or name == b"event" or (name == b"data" and self._is_endpoint):
            return False
        self._passing = True
        self._data_passed |= name == b"data"
        return True

    def _passed(self, line: bytes) -> bytes:
        """Return a whole line as it is passed on, or the end of a line whose start has passed."""
        name, _, value = self._field(line)
        passing, self._passing, self._ignored = self._passing, False, b""
        if passing:
            return line
        if not line:
            self._is_endpoint = self._data_passed = False
        elif name == b"event":
            self._is_endpoint = value.strip() == b"endpoint"
            if self._is_endpoint and self._data_passed:
                raise LeadsAway  # no server sends the address first
        elif name == b"data" and not self._is_endpoint:
            self._data_passed = True
        elif name == b"data":
            address = self._relocate(value.decode("utf-8", "replace"))
            if address is None:
                raise LeadsAway
            return b"data: " + address.encode()
        return line

    def _field(self, line: bytes) -> tuple[bytes, bytes, bytes]:
        name, colon, value = line.removeprefix(self._ignored).partition(b":")
        return name, colon, value.removeprefix(b" ")
