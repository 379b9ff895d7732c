"""The schedule: when each grant is inspected next. APScheduler wakes the daemon at the earliest of these times."""

import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger

__all__ = ["HEARTBEAT", "Schedule"]

HEARTBEAT: Final = "."
"""The name that is planned to test the schedule; no grant has a name that begins with a dot."""

_JOB: Final = "next"
_MOST_CANCELED: Final = 1000


class Schedule:
    """Calls ``callback()`` when a plan is due, in its own thread; one other thread plans, and asks for what is due.

    ``callback`` must be fast. One job of APScheduler wakes for all plans: a job for each of 100,000 grants would take
    most of the start and 130 MB.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._planned: dict[str, float] = {}
        # This also holds plans that were canceled or replaced.
        self._heap: list[tuple[float, str]] = []
        self._wakes_at: float | None = None
        self._called = False
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            # Jobs run in the scheduler's own thread: a fast callback needs no pool.
            executors={"default": DebugExecutor()},
            # By default, APScheduler drops a job that would start a second late.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )

    def start(self) -> None:
        """Start the thread."""
        self._scheduler.start()

    def stop(self) -> None:
        """Cancel everything and stop the thread."""
        # This waits for a running callback: one that returned after the shutdown would print a traceback.
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=False)

    def plan(self, name: str, at: float) -> None:
        """Plan ``name`` for ``at`` (epoch seconds), or at once if that is past; replaces the earlier plan.

        ``at`` is a time of the wall clock: the caller plans again when the clock was set.
        """
        self._planned[name] = at
        heapq.heappush(self._heap, (at, name))
        self._wake()

    def cancel(self, name: str) -> None:
        """Cancel the plan for ``name``, if there is one."""
        self._planned.pop(name, None)

    def planned_for(self, name: str) -> float | None:
        """Return for when ``name`` is planned; ``None`` if it is not."""
        return self._planned.get(name)

    def due(self) -> list[str]:
        """Return the names that are due, after a callback; each is then planned no more."""
        now = time.time()
        due = []
        while self._heap and (self._heap[0][0] <= now or self._is_canceled(*self._heap[0])):
            at, name = heapq.heappop(self._heap)
            if not self._is_canceled(at, name):
                del self._planned[name]
                due.append(name)
        self._called, self._wakes_at = False, None
        self._wake()
        return due

    def _is_canceled(self, at: float, name: str) -> bool:
        return self._planned.get(name) != at

    def _wake(self) -> None:
        """Have the callback called at the earliest plan."""
        if len(self._heap) > 2 * len(self._planned) + _MOST_CANCELED:
            self._heap = [(at, name) for name, at in self._planned.items()]
            heapq.heapify(self._heap)
        if self._called or not self._heap:
            return
        earliest, _ = self._heap[0]
        # APScheduler looks at the clock again for a new job: if the clock was set, the old one is late.
        if self._wakes_at is None or earliest < self._wakes_at or self._wakes_at <= time.time():
            self._wakes_at = earliest
            trigger = DateTrigger(datetime.fromtimestamp(earliest, UTC))
            self._scheduler.add_job(self._call, trigger, id=_JOB, replace_existing=True)

    def _call(self) -> None:
        self._called = True
        self._callback()
