"""What is a repetition, and need not be said again."""

import time
from collections.abc import Hashable
from typing import Final

__all__ = ["Throttle"]

_REPEAT_AFTER: Final = 600.0


class Throttle:
    """Says whether something is new: not the same as the last time, or the last time was ten minutes ago."""

    def __init__(self) -> None:
        self._last: Final[dict[Hashable, tuple[object, float]]] = {}

    def is_new(self, subject: Hashable, what: object = None) -> bool:
        """Return whether ``what`` is new for ``subject``, and remember it if it is."""
        known, at = self._last.get(subject, (None, float("-inf")))
        now = time.monotonic()
        if known == what and now - at <= _REPEAT_AFTER:
            return False
        self._last[subject] = what, now
        return True

    def forget(self, subject: Hashable) -> None:
        """Have the next of ``subject`` be new."""
        self._last.pop(subject, None)
