"""The log of the daemon: each message about a grant once, and again only after ten minutes."""

import logging
import time
from typing import Final

from refresher.operations.result import EXIT_CODES, Result

__all__ = ["LogThrottle"]

log = logging.getLogger(__name__)

_REPEAT_AFTER: Final = 600.0


class LogThrottle:
    """Remembers the last message about each grant."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def log(self, name: str, what: str, level: int, message: str) -> None:
        """Log ``message`` about the grant ``name``, unless ``what`` is the same as the last time.

        ``name`` is empty for a message about refresher itself.
        """
        last, logged_at = self._last.get(name, (None, 0.0))
        now = time.monotonic()
        if last != what or now - logged_at > _REPEAT_AFTER:
            self._last[name] = (what, now)
            log.log(level, "%s", f"{name}: {message}" if name else message)

    def log_result(self, result: Result, what: str) -> None:
        """Log the result of a rotation; ``what`` distinguishes it from others with the same outcome."""
        failed = EXIT_CODES[result.outcome] != 0
        rotated = result.outcome == "rotated"
        level = logging.WARNING if failed else logging.INFO if rotated else logging.DEBUG
        generation = f" (generation {result.generation})" if rotated else ""
        message = f"{result.outcome}{generation}: {result.detail}"
        self.log(result.name, f"{result.outcome} {what}", level, message)

    def log_internal_error(self, name: str, error: Exception) -> None:
        """Log a bug, without a trace, which could quote a secret."""
        message = f"internal error ({type(error).__name__}); please report it"
        self.log(name, "internal error", logging.ERROR, message)

    def forget(self, name: str) -> None:
        """Log the next message about ``name``, whatever it is."""
        self._last.pop(name, None)
