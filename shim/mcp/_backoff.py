"""How long to wait after repeated failures."""

import math
import random
import time

__all__ = ["StreamPauses", "backoff"]

_SHORTEST = 1.0
"""Seconds between two attempts to open a stream, also if the server asks for fewer."""
_LONGEST = 30.0
_STABLE_AFTER = 10.0
"""Seconds after which a stream counts as working, even if nothing came."""


def backoff(failures: int, first: float, longest: float, *, jitter: float = 0.5) -> float:
    """Return the seconds to wait after ``failures`` earlier ones: ``first``, doubled each time, up to ``longest``.

    ``jitter`` is the share by which the result varies, so that agents that lost the same server do not reconnect at the
    same moment.
    """
    return min(first * 2.0 ** min(failures, 8), longest) * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311


class StreamPauses:
    """The pauses before a stream that has ended is opened again: growing, until the stream works."""

    def __init__(self) -> None:
        self._failures = 0
        self.opened_at = -math.inf
        """When the stream was opened last (monotonic seconds)."""

    def opened(self) -> None:
        """Record that the stream is being opened."""
        self.opened_at = time.monotonic()

    def worked(self) -> None:
        """Record that something came from the stream."""
        self._failures = 0

    def next(self, asked: float | None = None) -> float:
        """Return the seconds before the next attempt. ``asked``: the seconds that the server asks for, if it works."""
        now = time.monotonic()
        if now - self.opened_at > _STABLE_AFTER:
            self._failures = 0
        pause = asked if asked is not None and self._failures == 0 else backoff(self._failures, _SHORTEST, _LONGEST)
        self._failures += 1
        return max(min(pause, _LONGEST), self.opened_at + _SHORTEST - now)
