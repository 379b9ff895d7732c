"""When each name is looked at next: one date job for each, in APScheduler."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger

__all__ = ["BEAT", "Timetable"]

BEAT: Final = "."
"""What is rung for to see that it rings; no name of a grant begins with a dot."""


class Timetable:
    """Calls ``ring(name)`` at the instant planned for it, in a thread of its own; ``ring`` must be brief."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            # In the scheduler's own thread: a job only rings, and a pool would be threads for nothing.
            executors={"default": DebugExecutor()},
            # By default a job that starts a second late never runs, and is gone.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )

    def start(self) -> None:
        """Begin to ring."""
        self._scheduler.start()

    def stop(self) -> None:
        """Ring no more."""
        # By this it waits for whoever rings: a job that ends while the scheduler is shut down ends in a trace.
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=False)

    def plan(self, name: str, at: float) -> None:
        """Ring for ``name`` at ``at`` (epoch seconds), at once where that is past; what was planned is forgotten.

        By the wall clock, which can be set: the caller plans anew when it was.
        """
        trigger = DateTrigger(datetime.fromtimestamp(at, UTC))
        self._scheduler.add_job(self._ring, trigger, args=(name,), id=name, replace_existing=True)

    def drop(self, name: str) -> None:
        """Forget what is planned for ``name``, if anything is."""
        try:
            self._scheduler.remove_job(name)
        except JobLookupError:
            return
