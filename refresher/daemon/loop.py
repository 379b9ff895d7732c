"""The daemon: inspect each grant when it is due or has changed, and rotate it if the policy says so.

One thread inspects and decides. Each rotation runs in its own thread (``WorkQueue``), the schedule runs in another, and
both only put events into a queue: nothing else is shared. The decision is the same as in ``run-once``: the schedule
determines when to inspect a grant, never what to do.
"""

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Literal, NamedTuple

from refresher.common import clocks, logs
from refresher.common.errors import DirectoryError, GrantFileError
from refresher.common.signals import DaemonSignals
from refresher.config import Settings
from refresher.daemon.certificate_watch import CertificateWatch
from refresher.daemon.directory_watch import DirectoryWatch
from refresher.daemon.feeding import Feeding
from refresher.daemon.log_throttle import LOCAL_FAULTS, ROTATED, EventThrottle, LogThrottle
from refresher.daemon.metrics_page import MetricsPage
from refresher.daemon.schedule import HEARTBEAT, Schedule
from refresher.daemon.stopping import stop
from refresher.daemon.supervision import Supervision
from refresher.grants import policy, refresh_life
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Grant
from refresher.oauth.http_client import DEADLINE
from refresher.oauth.tls import ssl_context
from refresher.observers import hooks
from refresher.observers.hub import Observers
from refresher.observers.metrics import Counts
from refresher.operations.events import happened, now_in
from refresher.operations.grant_report import INVALID
from refresher.operations.inspection import Inspection, inspect, server_of
from refresher.operations.result import EXIT_CODES, Result, ResultCode
from refresher.operations.rotate import Order, Terms, rotate
from refresher.operations.work_queue import Finished, WorkQueue
from refresher.storage import records, startup_checks
from refresher.storage.file_store import FileStore

__all__ = ["Daemon"]

log = logging.getLogger(__name__)

_TIME_TO_SAVE: Final = 5.0
_SCAN_INTERVAL: Final = 0.2
_MAX_SCAN_INTERVAL: Final = 0.7
_MAX_SCAN_SHARE: Final = 0.2
_MAX_PAUSE: Final = 30.0
_LOCK_WAIT: Final = 2.0
_QUIET_LOCK_WAITS: Final = 4
_MAX_PLAN: Final = 86400.0


class _Job(NamedTuple):
    """A rotation, with the configuration at the time of the decision."""

    store: FileStore
    order: Order
    terms: Terms


_Event = Literal["due"] | Finished[_Job, Result | None] | None
"""A plan is due, or a rotation has finished; ``None`` only wakes the loop: a signal came."""


class _Pause(NamedTuple):
    """A pause until ``until`` (monotonic seconds), after the same happened ``times`` times in a row.

    ``fault``: the lock, the disk or refresher itself failed. Otherwise there was a cleanup, which may be needed again.
    """

    fault: bool
    times: int
    until: float
    outcome: ResultCode | None = None
    """Of a fault."""

    @classmethod
    def after(cls, previous: "_Pause | None", *, fault: bool, outcome: ResultCode | None = None) -> "_Pause":
        """Return the pause that follows ``previous``: 1 s, doubling to 30 s."""
        times = 1 if previous is None or previous.fault is not fault else previous.times + 1
        # The exponent is limited before the power, which would overflow after a night.
        return cls(fault, times, time.monotonic() + min(2.0 ** min(times - 1, 10), _MAX_PAUSE), outcome)


class Daemon:
    """Rotates every grant on time, until a signal stops it."""

    def __init__(
        self, configure: Callable[[], Settings], signals: DaemonSignals, observers: Observers, *, grace: float
    ) -> None:
        self._settings = configure()
        self._observers = observers
        self._configure = configure
        self._grace = grace
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._signals = signals
        signals.wake = lambda: self._events.put(None)
        self._schedule = Schedule(lambda: self._events.put("due"))
        self._queue: WorkQueue[_Job, Result | None] = WorkQueue(lambda job: rotate(*job), self._events.put)
        self._watch = DirectoryWatch(self._settings.directories)
        self._store = FileStore(self._settings.directories)
        self._in_progress: set[str] = set()
        self._emit = EventThrottle(observers.emit)
        self._pauses: dict[str, _Pause] = {}
        self._throttle = LogThrottle()
        self._warned: set[str] = set()
        self._sent: set[str] = set()
        self._supervision = Supervision()
        self._readiness = self._supervision.readiness
        self._readiness.on_unreadable = lambda *change: observers.emit(now_in(*change))
        observers.add(counts := Counts())
        self._supervision.endpoint.store = lambda: self._store
        self._supervision.endpoint.metrics = MetricsPage(self._readiness, counts, observers, lambda: self._store)
        self._certificates = CertificateWatch(observers.emit)
        self._feeding = Feeding()
        self._heartbeat_at = float("-inf")
        self._scan_at = float("-inf")

    def run(self) -> int:
        """Watch and rotate until SIGINT or SIGTERM; return the exit code.

        Raises ``ConfigError`` and ``DirectoryError`` at the start.
        """
        self._apply(self._settings, "")
        self._schedule.start()
        try:
            while not self._signals():
                self._step()
        finally:
            self._schedule.stop()
        return self._drain()

    def _apply(self, settings: Settings, prefix: str) -> None:
        """Use ``settings`` from now on. Raises ``ConfigError`` and ``DirectoryError``, and then changes nothing."""
        directories = settings.directories
        directories.prepare()  # the first scan reports what is wrong with demands/
        if settings.ca_file is not None:
            ssl_context(settings.ca_file)
        if settings.hooks is not None:
            hooks.check(settings.hooks)
        count = records.count(directories)
        logs.setup(settings.log_format, settings.verbose + 1, nonblocking=True)
        self._settings = settings
        log.info(
            "%swatching %d grant%s in %s and demands in %s; publishing in %s",
            prefix,
            count,
            "" if count == 1 else "s",
            directories.grants,
            directories.demands,
            directories.tokens,
        )
        self._supervision.use(settings)
        self._observers.use(settings)
        startup_checks.warn(directories, self._warned)

    def _step(self) -> None:
        """Do what is due now, and process the events until the next scan."""
        try:
            if self._signals.reload_requested():
                self._reload()
            self._scan()
            self._queue.start_jobs()
            if time.monotonic() >= self._heartbeat_at:
                # Through the schedule and back: the heartbeat proves that both threads work.
                self._heartbeat_at = time.monotonic() + self._supervision.heartbeat_interval
                self._schedule.plan(HEARTBEAT, time.time())
            self._process_events(self._scan_at - time.monotonic())
        except Exception as error:  # noqa: BLE001  an internal error must not stop the rotation of every grant
            self._throttle.log_internal_error("", error)
            self._scan_at = time.monotonic() + _SCAN_INTERVAL

    def _scan(self) -> None:
        """Inspect the grants that have changed, if it is time for a scan."""
        if time.monotonic() < self._scan_at:
            return
        started = time.thread_time()
        try:
            changed = self._watch.changed()
        except DirectoryError as error:
            self._throttle.log("", str(error), logging.ERROR, str(error))
        else:
            if (problem := self._watch.demands_problem) is None:
                self._throttle.forget("")
            else:
                self._throttle.log("", problem, logging.ERROR, f"cannot accept demands from agents: {problem}")
            self._watch.demands.warn(self._warned)
            self._supervision.endpoint.changed(changed)
            for name in sorted(changed):
                self._inspect(name)
            self._readiness.mark_complete()
        # With any number of files, scans use a fifth of the time at most, and demands wait 0.7 s at most.
        pause = (time.thread_time() - started) / _MAX_SCAN_SHARE
        self._scan_at = time.monotonic() + min(max(_SCAN_INTERVAL, pause), _MAX_SCAN_INTERVAL)

    def _inspect(self, name: str) -> None:
        """Inspect ``name``, then rotate it, plan the next inspection, or forget it."""
        if name in self._in_progress:
            return  # the scan after its rotation inspects it
        try:
            self._follow(inspect(self._store.publisher, name, listing=self._watch.listing, demands=self._watch.demands))
        except Exception as error:  # noqa: BLE001  an internal error in one grant must not stop the others
            # A disk error may end without any change that a scan would find.
            self._schedule.plan(name, time.time() + _MAX_PAUSE)
            if isinstance(error, GrantFileError):
                self._readiness.mark_unreadable(name, str(error))
                message = f"invalid_grant_file: {error}"
                if self._throttle.log(name, "invalid_grant_file", logging.WARNING, message):
                    self._observers.emit(happened(name, "failed", str(error), outcome="invalid_grant_file"))
            else:
                self._throttle.log_internal_error(name, error)

    def _follow(self, found: Inspection) -> None:
        """Do what follows from an inspection."""
        if isinstance(found.record, Grant):
            # That a key is not here, or what it seals is damaged, shows when it is needed.
            pause = self._pauses.get(found.name) if found.needs_lock else None
            unusable = pause is not None and pause.outcome == INVALID
            self._readiness.update(found.record, published=not found.stale, unusable=unusable)
            self._certificates.note(found.record)
            for name in self._feeding.note(found.record):
                self._schedule.plan(name, time.time())
        if found.needs_lock:
            self._submit(found)
        elif isinstance(found.record, Grant) and isinstance(found.decision, Wait):
            self._wait(found.record, found.decision)
        else:
            self._forget(found.name)

    def _submit(self, found: Inspection) -> None:
        """Queue a rotation or a cleanup, or plan it for the end of its pause."""
        name, decision, pause = found.name, found.decision, self._pauses.get(found.name)
        only_cleanup = not isinstance(decision, Rotate)
        if pause and (pause.fault or only_cleanup) and (remaining := pause.until - time.monotonic()) > 0:
            at = time.time() + remaining
            if isinstance(decision, Wait) and decision.until is not None:
                # A rotation does not wait for the end of a cleanup's pause.
                at = min(at, max(decision.until, time.time()))
            self._schedule.plan(name, at)
            return
        self._schedule.cancel(name)
        terms = Terms(
            ca_file=self._settings.ca_file,
            stopping=self._signals,
            deadline=min(DEADLINE, self._grace - _TIME_TO_SAVE),
            # The process that holds the lock does the same work, so a job does not wait for it for long.
            lock_wait=_LOCK_WAIT,
            warned=self._warned,
            sent=self._sent,
            emit=self._emit,
        )
        job = _Job(self._store, Order.after(found), terms)
        # A cleanup sends no request, so it does not wait for the limits of the server.
        sends_nothing = only_cleanup and not found.unfinished
        server = f"cleanup for {found.server}" if sends_nothing else found.server
        # Agents wait only for a demanded rotation.
        self._queue.put(server, job, first=decision == Rotate("demanded"))
        self._in_progress.add(name)
        self._queue.start_jobs()

    def _wait(self, grant: Grant, rest: Wait) -> None:
        """Plan the next inspection of a grant that is not rotated now; log why, unless it is only not due."""
        self._pauses.pop(grant.name, None)
        if rest.until is None:
            self._schedule.cancel(grant.name)
        else:
            if grant.failure is not None and grant.failure.busy_until is not None:
                # Not longer than the longest wait: a clock may have been set back since.
                wait = min(grant.failure.busy_until - time.time(), policy.MAX_WAIT)
                self._queue.hold(server_of(grant), time.monotonic() + wait)
            warning = refresh_life.next_warning(grant, clocks.now())
            longest = _MAX_PLAN if warning is None else min(warning.seconds, _MAX_PLAN)
            self._schedule.plan(grant.name, min(rest.until, time.time() + longest))
        result = Result.from_decision(grant, rest)
        if result.outcome == "token_rejected":
            self._throttle.log_result(result, str(grant.generation))
        elif rest.reason == "not_due":
            self._throttle.forget(grant.name)
        else:
            # Each failed attempt is logged, also one of another process or from before the start.
            attempt = "" if grant.failure is None else str(grant.failure.at)
            self._throttle.log_result(result, attempt)

    def _forget(self, name: str) -> None:
        self._schedule.cancel(name)
        self._throttle.forget(name)
        self._readiness.forget(name)
        self._certificates.forget(name)
        self._feeding.forget(name)
        self._emit.forget(name)
        self._pauses.pop(name, None)

    def _process_events(self, wait: float) -> None:
        """Wait up to ``wait`` seconds for an event; process all that have come."""
        try:
            event = self._events.get(timeout=max(wait, 0.0))
            while True:
                if isinstance(event, Finished):
                    self._finish(event)
                elif event == "due":
                    self._process_due()
                event = self._events.get_nowait()
        except Empty:
            return

    def _process_due(self) -> None:
        for name in self._schedule.due():
            if name == HEARTBEAT:
                self._supervision.heartbeat()
                self._certificates.check()
                self._observers.check_outputs()
            elif not self._signals():  # after a stop nothing new starts
                self._inspect(name)

    def _finish(self, finished: Finished[_Job, Result | None]) -> None:
        """Log the result of a rotation, and have the grant inspected again."""
        name, result = finished.job.order.name, finished.result
        self._queue.done(finished)
        self._in_progress.discard(name)
        if not self._signals():
            self._queue.start_jobs()
        previous = self._pauses.pop(name, None)
        if result is not None and result.outcome in LOCAL_FAULTS:
            # A lock that is held says nothing of a key that was not here.
            is_busy = result.outcome == "lock_busy" and previous is not None and previous.outcome == INVALID
            pause = _Pause.after(previous, fault=True, outcome=INVALID if is_busy else result.outcome)
            self._pauses[name] = pause
            if result.outcome == INVALID:
                self._readiness.mark_unreadable(name, result.detail)
            if result.outcome != "lock_busy" or pause.times > _QUIET_LOCK_WAITS:
                self._throttle.log_result(result, result.detail)
        elif result is not None and (result.outcome in ROTATED or self._is_final_failure(result)):
            self._throttle.log_result(result, str(result.generation))
        else:
            self._pauses[name] = _Pause.after(previous, fault=False)
        # Only at the next scan: what is known now still has the files of the attempt.
        self._watch.forget(name)

    def _is_final_failure(self, result: Result) -> bool:
        """Whether a rotation failed after the stop, when no inspection follows that would log it."""
        return self._signals() and EXIT_CODES[result.outcome] != 0 and result.outcome != "interrupted"

    def _reload(self) -> None:
        """Read the configuration again; keep the old one if the new one is invalid."""
        before = self._settings.directories
        self._supervision.reloading()
        self._heartbeat_at = float("-inf")
        try:
            self._apply(self._configure(), "configuration reloaded: ")
        except Exception as error:  # noqa: BLE001  a mistake in a file must not stop the rotation of every grant
            log.error("cannot reload the configuration, the old one stays in use: %s", error)  # noqa: TRY400
            return
        # The decision on each waiting job is made again with the new configuration.
        for job in self._queue.drop_waiting():
            self._in_progress.discard(job.order.name)
        moved = self._settings.directories != before
        forget = self._forget if moved else self._watch.forget
        for name in self._watch.names:
            forget(name)
        if moved:
            self._watch.close()
            self._watch = DirectoryWatch(self._settings.directories)
        self._store = FileStore(self._settings.directories)  # with what the sources of its keys give now
        self._scan_at = float("-inf")

    def _drain(self) -> int:
        self._queue.drop_waiting()
        return stop(
            lambda: sorted(job.order.name for job in self._queue.running()),
            lambda: self._process_events(0.2),
            supervision=self._supervision,
            observers=self._observers,
            signals=self._signals,
            sent=self._sent,
            grace=self._grace,
        )
