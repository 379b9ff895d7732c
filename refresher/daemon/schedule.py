"""The schedule: when each grant is inspected next, as one date job of APScheduler for each."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger

__all__ = ["HEARTBEAT", "Schedule"]

HEARTBEAT: Final = "."
"""The name that is planned to test the schedule; no grant has a name that begins with a dot."""


class Schedule:
    """Calls ``callback(name)`` at the time planned for each name, in its own thread. ``callback`` must be fast."""

    def __init__(self, callback: Callable[[str], None]) -> None:
        self._callback = callback
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
        """Call back for ``name`` at ``at`` (epoch seconds), or at once if that is past; replaces the earlier plan.

        ``at`` is a time of the wall clock: the caller plans again when the clock was set.
        """
        trigger = DateTrigger(datetime.fromtimestamp(at, UTC))
        self._scheduler.add_job(self._callback, trigger, args=(name,), id=name, replace_existing=True)

    def cancel(self, name: str) -> None:
        """Cancel the plan for ``name``, if there is one."""
        with suppress(JobLookupError):
            self._scheduler.remove_job(name)
