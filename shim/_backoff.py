"""How long to wait after repeated failures."""

import math
import random
import time

__all__ = ["StreamPauses", "backoff", "retry_pause"]

_FIRST_RETRY = 0.25
_LONGEST_RETRY = 10.0
_SHORTEST = 1.0
"""Seconds between two attempts to open a stream, also if the server asks for fewer."""
_LONGEST = 30.0
_LONGEST_ASKED = 300.0
"""Seconds; a server that asks for more may have confused the units."""
_STABLE_AFTER = 10.0
"""Seconds after which a stream counts as working, even if nothing came."""


def backoff(failures: int, first: float, longest: float, *, jitter: float = 0.5) -> float:
    """Return the seconds to wait after ``failures`` earlier ones: ``first``, doubled each time, up to ``longest``.

    ``jitter`` is the share by which the result varies, so that agents that lost the same server do not reconnect at the
    same moment.
    """
    return min(first * 2.0 ** min(failures, 8), longest) * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311


def retry_pause(failures: int) -> float:
    """Return the seconds before a request of a call is sent again, after ``failures`` earlier ones."""
    return backoff(failures, _FIRST_RETRY, _LONGEST_RETRY)


class StreamPauses:
    """The pauses before a stream that has ended is opened again: growing, until the stream works."""

    def __init__(self) -> None:
        self._failures = 0
        self._attempt_at = -math.inf
        self._open_at = math.inf

    def attempt(self) -> float:
        """Record that the stream is being opened; return when (monotonic seconds)."""
        self._attempt_at, self._open_at = time.monotonic(), math.inf
        return self._attempt_at

    def opened(self) -> None:
        """Record that the stream is open."""
        self._open_at = time.monotonic()

    def worked(self) -> None:
        """Record that something came from the stream."""
        self._failures = 0

    def next(self, asked: float | None = None) -> float:
        """Return the seconds before the next attempt. ``asked``: the seconds that the server asks for, if it works."""
        now = time.monotonic()
        if now - self._open_at > _STABLE_AFTER:
            self._failures = 0
        if asked is not None and self._failures == 0:
            pause = min(asked, _LONGEST_ASKED)
        else:
            pause = backoff(self._failures, _SHORTEST, _LONGEST)
        self._failures += 1
        return max(pause, self._attempt_at + _SHORTEST - now, 0.0)
