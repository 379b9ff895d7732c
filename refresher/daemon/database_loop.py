"""``run`` with grants in a database: claim what is due, and rotate it. Any number of hosts do the same.

One thread claims and logs. Each rotation runs in its own thread (``WorkQueue``). Another thread notes once a second
that this refresher is alive, and stores what the database did not take before. The database decides who rotates a
grant; the policy decides whether, as with files.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from refresher.common import logs
from refresher.common.errors import ConfigError, RefresherError
from refresher.common.signals import DaemonSignals
from refresher.config import Settings
from refresher.daemon.log_throttle import ROTATED, EventThrottle, LogThrottle
from refresher.daemon.metrics_page import MetricsPage
from refresher.daemon.mirror_thread import MirrorThread
from refresher.daemon.schedule import HEARTBEAT, Schedule
from refresher.daemon.stopping import stop
from refresher.daemon.supervision import Supervision
from refresher.oauth.http_client import DEADLINE
from refresher.oauth.tls import ssl_context
from refresher.observers import hooks
from refresher.observers.hub import Observers
from refresher.observers.metrics import Counts
from refresher.operations.events import now_in
from refresher.operations.grant_report import INVALID
from refresher.operations.result import EXIT_CODES, Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.operations.work_queue import MAX_PER_SERVER, Finished, WorkQueue
from refresher.storage import startup_checks

if TYPE_CHECKING:
    from refresher.storage.postgres.postgres_store import PostgresStore

__all__ = ["DatabaseDaemon", "Keeper"]

log = logging.getLogger(__name__)

_CLAIM_INTERVAL: Final = 0.5
_BEAT_INTERVAL: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
_LONGEST_BEAT_PAUSE: Final = 5.0
_TIME_TO_SAVE: Final = 5.0
_LOCK_WAIT: Final = 0.0
_LONGEST_GIVE_BACK: Final = 5.0


class _Job(NamedTuple):
    """A rotation of a grant that was claimed."""

    store: "PostgresStore"
    order: Order
    terms: Terms


class _Claimed(NamedTuple):
    """The grants that were claimed, each with its server; ``room``: how many were asked for."""

    servers: dict[str, str]
    room: int
    problem: str | None


_Event = Literal["due"] | _Claimed | Finished[_Job, Result | None] | None
"""The heartbeat is due, or a claim or a rotation has finished; ``None`` only wakes the loop."""


class _Claimer:
    """Claims what is due when it is asked, in a thread of its own: the database may not answer."""

    def __init__(self, store: "PostgresStore", put: Callable[[_Claimed], None]) -> None:
        self._store = store
        self._put = put
        self._stopped = False
        self._asked: SimpleQueue[tuple[int, dict[str, int]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)
        self._thread.start()

    def ask(self, room: int, rooms: dict[str, int]) -> None:
        """Claim up to ``room`` grants; ``rooms``: how many of a server that is busy here."""
        self._asked.put((room, rooms))

    def stop(self) -> None:
        """Give back what nobody has begun; a database that does not answer is not waited for: leases end."""
        self._stopped = True
        self._asked.put(None)
        self._thread.join(_LONGEST_GIVE_BACK)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None and not self._stopped:
            room, rooms = asked
            try:
                claimed = self._store.claim_due(room, each=MAX_PER_SERVER, rooms=rooms)
                self._put(_Claimed(claimed, room, None))
            except RefresherError as error:
                self._put(_Claimed({}, room, str(error)))
            except Exception as error:  # noqa: BLE001  an internal error must not end the claims
                self._put(_Claimed({}, room, f"internal error ({type(error).__name__}); please report it"))
        self._store.give_back()


class Keeper:
    """Notes once a second that this refresher is alive, and stores the spills of this host, in a thread of its own."""

    def __init__(self, store: "PostgresStore", report: Callable[[str, str], None]) -> None:
        self._store = store
        self._report = report
        """Takes the name of a grant that nobody on this host may rotate, and why."""
        self._stopped = threading.Event()
        self.problem: str | None = None
        """Why this refresher claims nothing; ``None``: it may."""
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Store the spills once more, as this host may not come back; a database that does not answer is left."""
        self._stopped.set()
        self._thread.join(_LONGEST_GIVE_BACK)

    def _run(self) -> None:
        heartbeat, said = self._store.heartbeat(), LogThrottle()
        pause = _BEAT_INTERVAL
        while not self._stopped.wait(pause):
            try:
                if heartbeat.beat():
                    log.warning(
                        "the database was promoted, or restored: grants that may have been rotated since its last "
                        "commit are in doubt until their access token expires"
                    )
                for unstored in self._store.commit_spills():
                    said.log("", unstored.problem, logging.ERROR, f"{unstored.name}: {unstored.problem}")
                    if self._store.is_held_up(unstored):
                        self._report(unstored.name, unstored.problem)
                self._store.release_again()
                self.problem, pause = None, _BEAT_INTERVAL
            except RefresherError as error:
                self.problem, pause = str(error), min(2 * pause, _LONGEST_BEAT_PAUSE)
            except Exception as error:  # noqa: BLE001  an internal error must not end the heartbeat
                said.log_internal_error("", error)
        with suppress(RefresherError):
            self._store.commit_spills()


class DatabaseDaemon:
    """Claims and rotates what is due, until a signal stops it."""

    def __init__(
        self, configure: Callable[[], Settings], signals: DaemonSignals, observers: Observers, *, grace: float
    ) -> None:
        self._configure = configure
        self._observers = observers
        self._grace = grace
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._signals = signals
        signals.wake = self.wake
        self._schedule = Schedule(lambda: self._events.put("due"))
        self._queue: WorkQueue[_Job, Result | None] = WorkQueue(lambda job: rotate(*job), self._events.put)
        self._emit = EventThrottle(observers.emit)
        self._throttle = LogThrottle()
        self._warned: set[str] = set()
        self._sent: set[str] = set()
        self._supervision = Supervision()
        self._settings = configure()
        self._store = self._settings.open_database()
        self._keeper: Keeper | None = None
        self._supervision.readiness.on_unreadable = lambda *change: observers.emit(now_in(*change))
        endpoint = self._supervision.endpoint
        endpoint.store = lambda: self._store
        observers.add(counts := Counts())
        endpoint.metrics = MetricsPage(self._supervision.readiness, counts, observers, lambda: self._store)
        self._mirror = MirrorThread(self._store, self._supervision.readiness, endpoint.changed)
        self._claimer = _Claimer(self._store, self._events.put)
        self._away = self._claiming = False
        self._claim_at = self._heartbeat_at = float("-inf")
        self._pause = _CLAIM_INTERVAL

    def run(self) -> int:
        """Claim and rotate until SIGINT or SIGTERM; return the exit code.

        Raises ``ConfigError`` and ``DirectoryError`` at the start.
        """
        self._apply(self._settings, "")
        self._keeper = Keeper(self._store, self._supervision.readiness.mark_unreadable)
        self._mirror.start()
        self._schedule.start()
        try:
            while not self._signals():
                self._step()
        finally:
            self._schedule.stop()
        return self._drain()

    def wake(self) -> None:
        """Let the loop look at once; any thread calls it."""
        self._claim_at = float("-inf")
        self._events.put(None)

    def _apply(self, settings: Settings, prefix: str) -> None:
        """Use ``settings`` from now on. Raises ``ConfigError`` and ``DirectoryError``, and then changes nothing."""
        directories = settings.directories
        directories.prepare()
        if settings.ca_file is not None:
            ssl_context(settings.ca_file)
        if settings.hooks is not None:
            hooks.check(settings.hooks)
        logs.setup(settings.log_format, settings.verbose + 1, nonblocking=True)
        self._settings = settings
        log.info(
            "%srotating what is due in %s; publishing in %s", prefix, self._store.database.place, directories.tokens
        )
        self._supervision.use(settings)
        self._observers.use(settings)
        startup_checks.warn(directories, self._warned)

    def _step(self) -> None:
        """Claim what is due, and process the events until the next claim."""
        try:
            if self._signals.reload_requested():
                self._reload()
            if not self._claiming and time.monotonic() >= self._claim_at:
                self._claim()
            self._queue.start_jobs()
            if time.monotonic() >= self._heartbeat_at:
                # Through the schedule and back: the heartbeat proves that both threads work.
                self._heartbeat_at = time.monotonic() + self._supervision.heartbeat_interval
                self._schedule.plan(HEARTBEAT, time.time())
            self._process_events(_CLAIM_INTERVAL if self._claiming else self._claim_at - time.monotonic())
        except Exception as error:  # noqa: BLE001  an internal error must not stop the rotation of every grant
            self._throttle.log_internal_error("", error)
            self._claim_at = time.monotonic() + _CLAIM_INTERVAL

    def _claim(self) -> None:
        """Ask for what is due, as much as can run now."""
        if self._keeper is not None and self._keeper.problem is not None:
            self._take(_Claimed({}, 0, self._keeper.problem))
        elif (room := self._queue.room()) > 0:
            self._claiming = True
            self._claimer.ask(room, self._queue.rooms())
        else:
            self._claim_at = time.monotonic() + _CLAIM_INTERVAL

    def _take(self, claimed: _Claimed) -> None:
        """Rotate what was claimed, or say why nothing was."""
        self._claiming = False
        if claimed.problem is not None:
            self._throttle.log("", "away", logging.ERROR, f"{claimed.problem}: nothing is rotated until it is back")
            self._away = True
            self._claim_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return
        if self._away:
            self._away = False
            self._throttle.forget("")
            log.warning("rotating again what is due in %s", self._store.database.place)
        self._pause = _CLAIM_INTERVAL
        # There is more if as many were found as were asked for.
        more = bool(claimed.servers) and len(claimed.servers) == claimed.room
        self._claim_at = time.monotonic() + (0.0 if more else _CLAIM_INTERVAL)
        if self._signals():
            return  # the claimer gives back what it has claimed
        for name, server in claimed.servers.items():
            order = Order(name=name, seen=-1)
            self._queue.put(server, _Job(self._store, order, self._terms()))
        self._queue.start_jobs()

    def _terms(self) -> Terms:
        return Terms(
            ca_file=self._settings.ca_file,
            stopping=self._signals,
            deadline=min(DEADLINE, self._grace - _TIME_TO_SAVE),
            lock_wait=_LOCK_WAIT,
            warned=self._warned,
            sent=self._sent,
            emit=self._emit,
        )

    def _process_events(self, wait: float) -> None:
        """Wait up to ``wait`` seconds for an event; process all that have come."""
        try:
            event = self._events.get(timeout=max(wait, 0.0))
            while True:
                if isinstance(event, Finished):
                    self._finish(event)
                elif isinstance(event, _Claimed):
                    self._take(event)
                elif event == "due" and HEARTBEAT in self._schedule.due():
                    self._supervision.heartbeat()
                    self._observers.check_outputs()
                event = self._events.get_nowait()
        except Empty:
            return

    def _finish(self, finished: Finished[_Job, Result | None]) -> None:
        """Log the result of a rotation."""
        name, result = finished.job.order.name, finished.result
        self._queue.done(finished)
        if result is not None and result.outcome == INVALID:
            self._supervision.readiness.mark_unreadable(name, result.detail)
        self._supervision.endpoint.changed((name,))
        if not self._signals():
            self._queue.start_jobs()
        if result is None or result.outcome in ("not_due", "adopted", "lock_busy"):
            self._throttle.forget(name)
        elif result.outcome in ROTATED:
            self._throttle.log_result(result, str(result.generation))
        elif EXIT_CODES[result.outcome] != 0:
            self._throttle.log_result(result, result.detail)

    def _reload(self) -> None:
        """Read the configuration again; keep the old one if the new one is invalid."""
        self._supervision.reloading()
        self._heartbeat_at = float("-inf")
        try:
            settings = self._configure()
            self._require_same_places(settings)
            self._apply(settings, "configuration reloaded: ")
            self._store.use_keys(settings.directories.keys)
        except Exception as error:  # noqa: BLE001  a mistake in a file must not stop the rotation of every grant
            log.error("cannot reload the configuration, the old one stays in use: %s", error)  # noqa: TRY400

    def _require_same_places(self, settings: Settings) -> None:
        old = self._settings
        directories = msgspec.structs.replace(settings.directories, keys=old.directories.keys)
        if (settings.store, directories, settings.mirror) != (old.store, old.directories, old.mirror):
            raise ConfigError("start 'refresher run' again to change the store, its mirror or a directory")

    def _drain(self) -> int:
        self._queue.drop_waiting()
        self._claimer.stop()
        code = stop(
            lambda: sorted(job.order.name for job in self._queue.running()),
            lambda: self._process_events(0.2),
            supervision=self._supervision,
            observers=self._observers,
            signals=self._signals,
            sent=self._sent,
            grace=self._grace,
        )
        self._mirror.stop()
        if self._keeper is not None:
            self._keeper.stop()
        self._store.close()
        return code
