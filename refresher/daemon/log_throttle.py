"""Which messages and events of the daemon are repetitions, and do not come again."""

import logging
from typing import Final

from refresher.common.throttle import Throttle
from refresher.operations.events import Emit, Event
from refresher.operations.result import EXIT_CODES, Result, ResultCode

__all__ = ["LOCAL_FAULTS", "ROTATED", "EventThrottle", "LogThrottle"]

log = logging.getLogger(__name__)

ROTATED: Final[tuple[ResultCode, ...]] = ("rotated", "token_rejected")
"""The outcomes after which there is a new token."""

LOCAL_FAULTS: Final[tuple[ResultCode, ...]] = ("lock_busy", "storage_failed", "invalid_grant_file")
"""The outcomes of which this machine is the cause; they are tried again soon."""


class LogThrottle:
    """Logs each message about a grant once, and again only after ten minutes."""

    def __init__(self) -> None:
        self._throttle: Final = Throttle()

    def log(self, name: str, what: str, level: int, message: str) -> bool:
        """Log ``message`` about the grant ``name``, unless ``what`` is the same as the last time.

        Return whether it was logged. ``name`` is empty for a message about refresher itself.
        """
        if is_new := self._throttle.is_new(name, what):
            log.log(level, "%s", f"{name}: {message}" if name else message)
        return is_new

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
        self._throttle.forget(name)


class EventThrottle:
    """Emits each event, but a fault of this machine that repeats only once in ten minutes.

    Else a full disk would fill the history with one message of each grant.
    Each rotation calls it in its thread.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit_now: Final = emit
        self._faults: Final = Throttle()

    def __call__(self, event: Event) -> None:
        """Emit ``event``, unless it is a repetition."""
        if event.outcome in LOCAL_FAULTS:
            if not self._faults.is_new(event.name, event.outcome):
                return
        elif event.kind in ("rotated", "failed"):
            self.forget(event.name)
        self._emit_now(event)

    def forget(self, name: str) -> None:
        """Emit the next fault of ``name``, also if it is a repetition."""
        self._faults.forget(name)
