"""What ``/metrics`` shows of the daemon: its counts, and the grants as they are stored."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from refresher.daemon.readiness import Readiness
from refresher.observers.hub import Observers
from refresher.observers.metrics import MOST_NAMES, Counts, Grants, Row, read_rows, render
from refresher.operations.grant_report import INVALID
from refresher.storage import last_run
from refresher.storage.store import Store

__all__ = ["MetricsPage"]

_MAX_SHARE: Final = 0.05


class MetricsPage:
    """Makes the page in the thread that calls it. The same page is used again if it took long to make."""

    def __init__(
        self,
        readiness: Readiness,
        counts: Counts,
        observers: Observers,
        store: Callable[[], Store],
    ) -> None:
        self._readiness = readiness
        self._counts = counts
        self._observers = observers
        self._store = store
        self._lock: Final = threading.Lock()
        self._page = b"", ""
        self._valid_until = float("-inf")

    def __call__(self) -> tuple[bytes, str]:
        """Return the page, and its content type."""
        with self._lock:
            if time.monotonic() >= self._valid_until:
                began = time.thread_time()
                self._page = self._made()
                # Any number of requests uses a twentieth of a processor at most.
                self._valid_until = time.monotonic() + (time.thread_time() - began) / _MAX_SHARE
            return self._page

    def _made(self) -> tuple[bytes, str]:
        store = self._store()
        names, by_state = self._readiness.most_urgent(MOST_NAMES)
        self._counts.keep(self._readiness.knows)
        grants = _agreed(read_rows(store, names), by_state, self._readiness)
        return render(
            self._counts,
            grants,
            last_run=last_run.at(store.directories),
            dropped=self._observers.dropped(),
            hook_failures=self._observers.hook_failures(),
        )


def _agreed(rows: Sequence[Row], by_state: Mapping[str, int], readiness: Readiness) -> Grants:
    """Return the grants, where those that cannot be opened count as such: by what is stored, or by the last attempt.

    A seal that was damaged shows at an attempt, and a key that is not here in what is stored, before it is needed.
    """
    counts, shown = Counter(by_state), []
    for row in rows:
        known = readiness.state(row.name)
        if known is not None and known != row.state and INVALID in (known, row.state):
            counts[known] -= 1
            counts[INVALID] += 1
        shown.append(Row(row.name, INVALID) if known == INVALID else row)
    return Grants(shown, counts)
