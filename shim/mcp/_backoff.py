"""How long to wait after repeated failures."""

import random

__all__ = ["backoff"]


def backoff(failures: int, first: float, longest: float, *, jitter: float = 0.5) -> float:
    """Return the seconds to wait after ``failures`` earlier ones: ``first``, doubled each time, up to ``longest``.

    ``jitter`` is the share by which the result varies, so that agents that lost the same server do not reconnect at the
    same moment.
    """
    return min(first * 2.0 ** min(failures, 8), longest) * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311
