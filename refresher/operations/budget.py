"""How often one authorization server may be asked: many due grants are spread, and a plea for rest is heeded."""

from typing import Final

__all__ = ["BURST", "RATE", "Budget"]

RATE: Final = 20.0
"""Requests a second, in the long run."""

BURST: Final = 40
"""Requests at once, after a rest."""


class Budget:
    """The budget of one server. Times are seconds of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._at = now
        self._held_until = float("-inf")

    def opens_at(self, now: float) -> float:
        """Return from when the next request may go; ``now`` or earlier: at once."""
        self._refill(now)
        missing = max(1.0 - self._left, 0.0) / RATE
        return max(now + missing, self._held_until)

    def take(self, now: float) -> None:
        """Count a request."""
        self._refill(now)
        self._left -= 1.0

    def hold(self, until: float) -> None:
        """Let no request go before ``until``: the server asked for it (RFC 9110 section 10.2.3)."""
        self._held_until = max(self._held_until, until)

    def _refill(self, now: float) -> None:
        self._left = min(self._left + max(now - self._at, 0.0) * RATE, float(BURST))
        self._at = max(now, self._at)
