"""The events of each grant in order; a violation is printed with the last ones."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Journal", "Violation", "Wait"]

_KEPT: Final = 500
_SHOWN: Final = 50


class Violation(NamedTuple):
    """A violation of an invariant, and the events before it."""

    name: str
    what: str
    trace: tuple[str, ...]


class Wait(NamedTuple):
    """How long a grant was without a live token, and the events before it."""

    seconds: float
    name: str
    trace: tuple[str, ...]


class Journal:
    """Records events by name. Its methods are safe to call from any thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._clock = clock
        self._began = clock()
        self._events: defaultdict[str, deque[tuple[float, str]]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._reported: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def note(self, name: str, words: str) -> None:
        """Record an event of ``name``; an empty name means all grants."""
        with self._lock:
            self._events[name].append((self._clock(), words))

    def count(self, what: str, name: str = "", words: str = "") -> None:
        """Count an event of a kind and record it."""
        with self._lock:
            self.counts[what] += 1
        self.note(name, f"{what}{f': {words}' if words else ''}")

    def violated(self, name: str, what: str) -> None:
        """Record a violation; the same one only once."""
        with self._lock:
            if (name, what) in self._reported:
                return
            self._reported.add((name, what))
        self.note(name, f"VIOLATION: {what}")
        self.violations.append(Violation(name, what, self.trace(name)))

    def trace(self, name: str) -> tuple[str, ...]:
        """Return the last events of ``name``, with those of all grants."""
        with self._lock:
            events = sorted((*self._events[name], *(self._events[""] if name else ())))
        return tuple(f"{at - self._began:9.3f}  {words}" for at, words in events[-_SHOWN:])
