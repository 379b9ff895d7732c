"""How soon a session is built anew: at once where the last one worked, else later and later. No clock."""

import random
from collections.abc import Callable

__all__ = ["Pace"]

_FIRST = 0.5
_LAST = 30.0
_OPEN_AFTER = 6


class Pace:
    """Counts what fails in a row; six are too many, and open the breaker: from then on there is one trial at a time."""

    def __init__(self, fraction: Callable[[], float] = random.random) -> None:
        self._fraction = fraction
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether it is given up for now: what comes next is a trial after a cool-down."""
        return self._failures >= _OPEN_AFTER

    def worked(self) -> None:
        """Forget the failures."""
        self._failures = 0

    def failed(self) -> float:
        """Count a failure; return the seconds to wait: half a second doubling to half a minute, +-50 %."""
        base = min(_LAST, _FIRST * 2.0 ** min(self._failures, 8))
        self._failures += 1
        # Many agents lose one server at the same instant: they must not come back at the same instant.
        return base * (0.5 + self._fraction())
