"""Which messages of the daemon are repetitions, and are not logged again."""

import logging
import time
from typing import Final

from refresher.operations.result import EXIT_CODES, Result, ResultCode

__all__ = ["ROTATED", "LogThrottle"]

log = logging.getLogger(__name__)

ROTATED: Final[tuple[ResultCode, ...]] = ("rotated", "token_rejected")
"""The outcomes after which there is a new token."""

_REPEAT_AFTER: Final = 600.0


class LogThrottle:
    """Logs each message about a grant once, and again only after ten minutes."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def log(self, name: str, what: str, level: int, message: str) -> bool:
        """Log ``message`` about the grant ``name``, unless ``what`` is the same as the last time.

        Return whether it was logged. ``name`` is empty for a message about refresher itself.
        """
        last, logged_at = self._last.get(name, (None, 0.0))
        now = time.monotonic()
        if last == what and now - logged_at <= _REPEAT_AFTER:
            return False
        self._last[name] = (what, now)
        log.log(level, "%s", f"{name}: {message}" if name else message)
        return True

    def log_result(self, result: Result, what: str) -> None:
        """Log the result of a rotation; ``what`` distinguishes it from others with the same outcome."""
        failed = EXIT_CODES[result.outcome] != 0
        rotated = result.outcome in ROTATED
        level = logging.WARNING if failed else logging.INFO if rotated else logging.DEBUG
        generation = f" (generation {result.generation})" if rotated else ""
        message = f"{result.outcome}{generation}: {result.detail}"
        self.log(result.name, f"{result.outcome} {what}", level, message)

    def log_internal_error(self, name: str, error: Exception) -> None:
        """Log a bug, without a trace, which could quote a secret."""
        message = f"internal error ({type(error).__name__}); please report it"
        self.log(name, "internal error", logging.ERROR, message)

    def forget(self, name: str) -> None:
        """Log the next message about ``name``, also if it is a repetition."""
        self._last.pop(name, None)
