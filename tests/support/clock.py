"""A wall clock that a test can set, for processes with its environment."""

import re
import time
from pathlib import Path

from tests.support.parts import faketime

__all__ = ["Clock", "no_clock"]


def no_clock() -> str | None:
    """Return why no clock can be set here, ``None`` if one can."""
    return None if faketime() else "libfaketime is not installed"


class Clock:
    """Sets the wall clock alone: the monotonic clock does not change."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self.set("+0s")
        self.environment = {
            "LD_PRELOAD": str(faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Without it, threads that wait for each other use all processors.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: str) -> None:
        """Set the clock to the true time plus ``offset``, such as ``+2h`` or ``-1d``."""
        number, unit = re.fullmatch(r"([+-]\d+)([smhd])", offset, re.ASCII).groups()  # type: ignore[union-attr]
        self._offset = int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
        following = self._file.with_name("offset.next")
        following.write_text(f"{self._offset:+d}s")
        following.rename(self._file)

    def now(self) -> float:
        """Return its time in epoch seconds."""
        return time.time() + self._offset
