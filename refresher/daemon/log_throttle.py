"""What a daemon tells of its grants: each thing once, and again only after a while."""

import logging
import time
from typing import Final

from refresher.operations.result import EXIT_CODES, Result

__all__ = ["News"]

log = logging.getLogger(__name__)

_TELL_AGAIN: Final = 600.0


class News:
    """Remembers by name what was told last, and when."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, float]] = {}

    def tell(self, name: str, what: str, level: int, line: str) -> None:
        """Log ``line``, unless ``what`` was the last news of ``name`` and not long ago."""
        before, at = self._told.get(name, (None, 0.0))
        now = time.monotonic()
        if before != what or now - at > _TELL_AGAIN:
            self._told[name] = (what, now)
            log.log(level, "%s", line)

    def tell_result(self, result: Result, what: str) -> None:
        """Log what became of a grant; ``what`` tells this happening from others with the same outcome."""
        grave = EXIT_CODES[result.outcome] != 0
        level = logging.WARNING if grave else logging.INFO if result.outcome == "rotated" else logging.DEBUG
        which = f" (generation {result.generation})" if result.outcome == "rotated" else ""
        line = f"{result.name}: {result.outcome}{which}: {result.detail}"
        self.tell(result.name, f"{result.outcome} {what}", level, line)

    def forget(self, name: str) -> None:
        """Take whatever comes next of ``name`` as news."""
        self._told.pop(name, None)
