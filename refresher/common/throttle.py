"""What is a repetition, and need not be said again."""

import time
from collections.abc import Hashable
from typing import Final

__all__ = ["Tally", "Throttle"]

_REPEAT_AFTER: Final = 600.0
_TALLY_AFTER: Final = 60.0


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


class Tally:
    """Counts what any program can cause any number of times: each kind is reported at once, then once a minute."""

    def __init__(self) -> None:
        self._kinds: Final[dict[Hashable, tuple[int, float]]] = {}

    def count(self, kind: Hashable) -> int:
        """Count one of ``kind``; return how many to report now, 0 if none. No sender may choose ``kind`` freely."""
        number, at = self._kinds.get(kind, (0, float("-inf")))
        now = time.monotonic()
        is_due = now - at > _TALLY_AFTER
        self._kinds[kind] = (0, now) if is_due else (number + 1, at)
        return number + 1 if is_due else 0
