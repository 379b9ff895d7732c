"""What happened to whom, in order: the traces that a violation is printed with."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Journal", "Violation", "Wait"]

_KEPT: Final = 500
_SHOWN: Final = 50


class Violation(NamedTuple):
    """Something that must not be, and what led to it."""

    name: str
    what: str
    trace: tuple[str, ...]


class Wait(NamedTuple):
    """How long somebody was without a live token, and what led to it."""

    seconds: float
    name: str
    trace: tuple[str, ...]


class Journal:
    """Notes events by name; any thread may note."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._clock = clock
        self._began = clock()
        self._events: defaultdict[str, deque[tuple[float, str]]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def note(self, name: str, words: str) -> None:
        """Note what happened to ``name``; to everybody where it is empty."""
        with self._lock:
            self._events[name].append((self._clock(), words))

    def count(self, what: str, name: str = "", words: str = "") -> None:
        """Count a happening of a kind and note it."""
        with self._lock:
            self.counts[what] += 1
        self.note(name, f"{what}{f': {words}' if words else ''}")

    def violated(self, name: str, what: str) -> None:
        """Note that something must not be; the same thing once."""
        with self._lock:
            if (name, what) in self._told:
                return
            self._told.add((name, what))
        self.note(name, f"VIOLATION: {what}")
        self.violations.append(Violation(name, what, self.trace(name)))

    def trace(self, name: str) -> tuple[str, ...]:
        """Return the last events of ``name``, and those of everybody among them."""
        with self._lock:
            events = sorted((*self._events[name], *(self._events[""] if name else ())))
        return tuple(f"{at - self._began:9.3f}  {words}" for at, words in events[-_SHOWN:])
