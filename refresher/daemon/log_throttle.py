"""Which messages and events of the daemon are repetitions, and do not come again."""

import logging
import time
from typing import Final

from refresher.operations.events import Emit, Event
from refresher.operations.result import EXIT_CODES, Result, ResultCode

__all__ = ["LOCAL_FAULTS", "ROTATED", "EventThrottle", "LogThrottle"]

log = logging.getLogger(__name__)

ROTATED: Final[tuple[ResultCode, ...]] = ("rotated", "token_rejected")
"""The outcomes after which there is a new token."""

LOCAL_FAULTS: Final[tuple[ResultCode, ...]] = ("lock_busy", "storage_failed", "invalid_grant_file")
"""The outcomes of which this machine is the cause; they are tried again soon."""

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


class EventThrottle:
    """Emits each event, but a fault of this machine that repeats only once in ten minutes.

    Else a full disk would fill the history with one message of each grant.
    Each rotation calls it in its thread.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit_now: Final = emit
        self._faults: Final[dict[str, tuple[ResultCode, float]]] = {}

    def __call__(self, event: Event) -> None:
        """Emit ``event``, unless it is a repetition."""
        now = time.monotonic()
        if event.outcome in LOCAL_FAULTS:
            outcome, at = self._faults.get(event.name, (None, 0.0))
            if outcome == event.outcome and now - at < _REPEAT_AFTER:
                return
            self._faults[event.name] = event.outcome, now
        elif event.kind in ("rotated", "failed"):
            self.forget(event.name)
        self._emit_now(event)

    def forget(self, name: str) -> None:
        """Emit the next fault of ``name``, also if it is a repetition."""
        self._faults.pop(name, None)
