"""The daemon: look at each grant when its time has come or something about it is new, and rotate what is to be rotated.

One thread looks and decides. Each rotation has a thread of its own (``places``), the timetable rings from another, and
all of them only put events into one queue. So nothing is shared, and whatever is decided is decided by the same code
as under cron: the timetable says when to look, never what to do.
"""

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from refresher.common import logs, text
from refresher.common.errors import DirectoryError, GrantFileError
from refresher.common.signals import Listening
from refresher.config import Settings
from refresher.daemon.log_throttle import News
from refresher.daemon.schedule import BEAT, Timetable
from refresher.daemon.supervision import Vitals
from refresher.daemon.watch import Watch
from refresher.grants import policy
from refresher.grants.policy import Rest, Rotate
from refresher.grants.record import Grant
from refresher.oauth.exchange import DEADLINE
from refresher.oauth.tls import trusted
from refresher.operations import explanation
from refresher.operations.inspection import Look, look, server_of
from refresher.operations.inventory import overview
from refresher.operations.result import EXIT_CODES, Result, Word
from refresher.operations.rotate import Order, Terms, rotate
from refresher.operations.work_queue import Finished, Places
from refresher.storage import startup_checks
from refresher.storage.directories import Directories

__all__ = ["Daemon"]

log = logging.getLogger(__name__)

_TO_SAVE: Final = 5.0
_LOOK_EACH: Final = 0.2
_SHARE_OF_LOOKING: Final = 0.2
_LONGEST_BLINDNESS: Final = 0.7
_LAST_PAUSE: Final = 30.0
_LOCK_WAIT: Final = 2.0
_BUSY_FOR_LONG: Final = 4
_FURTHEST: Final = 86400.0
_FAULTS: Final[tuple[Word, ...]] = ("lock_busy", "storage_failed", "invalid_grant_file")


class _Job(msgspec.Struct, frozen=True):
    """A rotation, by the configuration that was in force when it was decided."""

    directories: Directories
    order: Order
    terms: Terms


class _Due(msgspec.Struct, frozen=True):
    name: str


class _Awake(msgspec.Struct, frozen=True):
    """Something to be seen elsewhere: a signal came."""


_Event = _Due | _Awake | Finished[_Job, Result | None]


class _Pause(msgspec.Struct, frozen=True):
    """Something was done ``times`` in a row and did not help: not before ``until`` (monotonic seconds) again."""

    times: int
    until: float

    @classmethod
    def after(cls, before: "_Pause | None") -> "_Pause":
        """Return the pause that follows ``before``: 1 s, doubling to 30 s."""
        times = 1 if before is None else before.times + 1
        # The exponent is clamped before the power, which would overflow after a night.
        return cls(times, time.monotonic() + min(2.0 ** min(times - 1, 10), _LAST_PAUSE))


class Daemon:
    """Rotates on time, until it is told to stop."""

    def __init__(self, configure: Callable[[], Settings], signals: Listening, *, grace: float) -> None:
        self._settings = configure()
        self._configure = configure
        self._grace = grace
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._signals = signals
        signals.wake = lambda: self._events.put(_Awake())
        self._timetable = Timetable(lambda name: self._events.put(_Due(name)))
        self._places: Places[_Job, Result | None] = Places(_carry_out, self._events.put)
        self._watch = Watch(self._settings.directories)
        self._busy: set[str] = set()
        # Where the lock, the disk or we ourselves have failed; and where only tidying up is needed, again and again.
        self._failed: dict[str, _Pause] = {}
        self._tidied: dict[str, _Pause] = {}
        self._news = News()
        self._vitals = Vitals()
        self._freshness = self._vitals.freshness
        self._beat_at = float("-inf")
        self._look_around_at = float("-inf")

    def run(self) -> int:
        """Watch and rotate until SIGINT or SIGTERM; return the exit code.

        Raises ``ConfigError`` and ``DirectoryError`` where it cannot even begin.
        """
        self._begin(self._settings, "")
        self._timetable.start()
        try:
            while not self._signals():
                self._turn()
        finally:
            self._timetable.stop()
        return self._drain()

    def _begin(self, settings: Settings, why: str) -> None:
        """Take up ``settings``. Raises ``ConfigError`` and ``DirectoryError``, and then nothing is changed."""
        watched = _ready(settings)
        self._vitals.listen(settings.listen)
        logs.setup(settings.log_format, settings.verbose + 1, unhindered=True)
        self._settings = settings
        log.info("%swatching %s", why, watched)
        if self._vitals.url is not None:
            log.info("how it is can be asked at %s/healthz and /readyz", self._vitals.url)
        startup_checks.tell(settings.directories)

    def _turn(self) -> None:
        """Do what is to be done now, and wait a moment for what comes next."""
        try:
            if self._signals.asked_to_reread():
                self._reconfigure()
            self._look_around()
            self._places.begin()
            self._plan_beat()
            self._hear(self._look_around_at - time.monotonic())
        except Exception as error:  # noqa: BLE001  a fault of ours must not end the rotation of every grant
            self._news.tell("", "fault", logging.ERROR, f"a fault in refresher itself ({type(error).__name__})")
            self._look_around_at = time.monotonic() + _LOOK_EACH

    def _plan_beat(self) -> None:
        """Have the timetable ring at once, now and then: what comes back proves that both loops turn."""
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + self._vitals.beat_each
            self._timetable.plan(BEAT, time.time())

    def _look_around(self) -> None:
        if time.monotonic() < self._look_around_at:
            return
        began = time.thread_time()
        try:
            changed = self._watch.changed()
        except DirectoryError as error:
            self._news.tell("", "directory", logging.ERROR, str(error))
        else:
            self._tell_of_demands(self._watch.trouble)
            for name in sorted(changed):
                self._look(name)
            self._freshness.looked_around()
        # However many files somebody has made to be looked at: most of the time is for something else, but never so
        # much that demands go unheard.
        pause = (time.thread_time() - began) / _SHARE_OF_LOOKING
        self._look_around_at = time.monotonic() + min(max(_LOOK_EACH, pause), _LONGEST_BLINDNESS)

    def _tell_of_demands(self, trouble: str | None) -> None:
        if trouble is None:
            self._news.forget("")
        else:
            self._news.tell("", trouble, logging.ERROR, f"no demands are heard: {trouble}")

    def _look(self, name: str) -> None:
        """Look at ``name``: rotate it, plan when to look again, or forget it."""
        if name in self._busy:
            return  # it is looked at when that is finished
        try:
            seen = look(
                self._settings.directories,
                name,
                unfinished=name in self._watch.listing.unfinished,
                asked=self._watch.asked,
            )
        except GrantFileError as error:
            # It may be readable again without looking any different: a disk error, too many open files.
            self._freshness.cannot_read(name)
            self._timetable.plan(name, time.time() + _LAST_PAUSE)
            self._news.tell(name, "invalid_grant_file", logging.WARNING, f"{name}: invalid_grant_file: {error}")
            return
        except Exception as error:  # noqa: BLE001  a fault of ours in one grant must not keep the others from theirs
            self._timetable.plan(name, time.time() + _LAST_PAUSE)
            self._news.tell(
                name, "fault", logging.ERROR, f"{name}: a fault in refresher itself ({type(error).__name__})"
            )
            return
        if isinstance(seen.record, Grant):
            self._freshness.see(seen.record, published=not seen.unpublished)
        if seen.needs_lock:
            self._queue(seen)
        elif isinstance(seen.record, Grant) and isinstance(seen.decision, Rest):
            self._rest(seen.record, seen.decision)
        else:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._timetable.drop(name)
        self._news.forget(name)
        self._freshness.forget(name)
        for pauses in (self._failed, self._tidied):
            pauses.pop(name, None)

    def _queue(self, seen: Look) -> None:
        now = time.monotonic()
        pauses = [self._failed.get(seen.name)]
        resting = isinstance(seen.decision, Rest) or seen.decision is None
        if resting:
            # Tidying up can wait; a rotation does not wait for it.
            pauses.append(self._tidied.get(seen.name))
        until = max((pause.until for pause in pauses if pause is not None), default=now)
        if until > now:
            at = time.time() + until - now
            rest = seen.decision.until if isinstance(seen.decision, Rest) else None
            self._timetable.plan(seen.name, at if rest is None else min(at, max(rest, time.time())))
            return
        self._timetable.drop(seen.name)
        self._busy.add(seen.name)
        terms = Terms(
            ca_file=self._settings.ca_file,
            stopping=self._signals,
            deadline=min(DEADLINE, self._grace - _TO_SAVE),
            # Whoever holds it is at work on the very same; a place must not be blocked by waiting for him.
            lock_wait=_LOCK_WAIT,
        )
        job = _Job(self._settings.directories, Order(name=seen.name, seen=seen.generation), terms)
        # A server that is slow, or wants to be left alone for an hour, holds up no publication: it is not asked.
        tidying = resting and seen.name not in self._watch.listing.unfinished
        queue = f"tidying up for {seen.server}" if tidying else seen.server
        # Agents wait for what is demanded, and for nothing else.
        self._places.join(queue, job, first=seen.decision == Rotate("demanded"))
        self._places.begin()

    def _rest(self, grant: Grant, rest: Rest) -> None:
        self._failed.pop(grant.name, None)
        self._tidied.pop(grant.name, None)
        if rest.until is None:
            self._timetable.drop(grant.name)
        else:
            if grant.failure is not None and grant.failure.busy_until is not None:
                # No longer than its own maximum: a clock may have been set back since.
                wait = min(grant.failure.busy_until - time.time(), policy.MAX_WAIT)
                self._places.hold(server_of(grant), time.monotonic() + wait)
            self._timetable.plan(grant.name, min(rest.until, time.time() + _FURTHEST))
        if rest.because == "not_due":
            self._news.forget(grant.name)
        else:
            # Of whoever's attempt: a grant that was dead at the start, or died elsewhere, is news as well.
            attempt = "" if grant.failure is None else str(grant.failure.at)
            self._news.tell_result(explanation.rested(grant, rest), attempt)

    def _hear(self, wait: float) -> None:
        """Take the events of the next ``wait`` seconds, at most until one has come."""
        try:
            event = self._events.get(timeout=max(wait, 0.0))
            while True:
                self._take(event)
                event = self._events.get_nowait()
        except Empty:
            return

    def _take(self, event: _Event) -> None:
        match event:
            case _Due(name) if name == BEAT:
                self._vitals.beat()
            case _Due(name) if not self._signals():
                self._look(name)
            case Finished():
                self._finish(event)
            case _Due() | _Awake():
                pass

    def _finish(self, finished: Finished[_Job, Result | None]) -> None:
        name = finished.job.order.name
        self._places.leave(finished)
        self._busy.discard(name)
        if not self._signals():
            self._places.begin()
        result = finished.result
        failed, tidied = self._failed.pop(name, None), self._tidied.pop(name, None)
        if result is not None and result.outcome in _FAULTS:
            self._failed[name] = _Pause.after(failed)
            if result.outcome != "lock_busy" or self._failed[name].times > _BUSY_FOR_LONG:
                self._news.tell_result(result, result.detail)
        elif result is not None and (result.outcome == "rotated" or self._is_last_word(result)):
            self._news.tell_result(result, str(result.generation))
        else:
            self._tidied[name] = _Pause.after(tidied)
        # Only after the next listing: the present one still has the attempt that has just ended.
        self._watch.forget(name)

    def _is_last_word(self, result: Result) -> bool:
        """Whether nobody looks any more, and so nobody else will tell it."""
        return self._signals() and EXIT_CODES[result.outcome] != 0 and result.outcome != "interrupted"

    def _reconfigure(self) -> None:
        before = self._settings.directories
        self._vitals.reloading()
        self._beat_at = float("-inf")
        try:
            self._begin(self._configure(), "the configuration was read again: ")
        except Exception as error:  # noqa: BLE001  a mistake in a file must not end the rotation of every grant
            log.error("the configuration is kept as it was: %s", error)  # noqa: TRY400  a person's mistake, no fault
            return
        # What has not begun is decided anew, by what is in force now.
        for job in self._places.forget_waiting():
            self._busy.discard(job.order.name)
        for name in self._watch.names():
            if self._settings.directories == before:
                self._watch.forget(name)
            else:
                self._forget(name)
        if self._settings.directories != before:
            self._watch = Watch(self._settings.directories)
        self._look_around_at = float("-inf")

    def _drain(self) -> int:
        """Let what is under way come to its end: killed now, it could lose a refresh token."""
        self._places.forget_waiting()
        what = f"stopping; first {self._under_way()} is finished" if self._places.working() else "stopping"
        self._vitals.stopping(what)
        if self._places.working():
            log.info("%s", what)
        ends = time.monotonic() + self._grace
        while self._places.working():
            self._hear(0.2)
            self._vitals.finishing()
            if self._signals.asked_again():
                log.warning("still finishing %s; killed now, their new refresh tokens could be lost", self._under_way())
            if time.monotonic() > ends:
                ends = float("inf")
                log.critical(
                    "the grace of %s is over, and %s is not saved: killed now, their new refresh tokens are lost",
                    text.span(self._grace),
                    self._under_way(),
                )
        log.info("stopped")
        return 0

    def _under_way(self) -> str:
        return text.names(sorted(job.order.name for job in self._places.working()))


def _carry_out(job: _Job) -> Result | None:
    return rotate(job.directories, job.order, job.terms)


def _ready(settings: Settings) -> str:
    """Return in words what is watched and where.

    Raises ``ConfigError`` and ``DirectoryError`` for what could never work.
    """
    directories = settings.directories
    directories.ensure()
    if settings.ca_file is not None:
        trusted(settings.ca_file)
    count = len(overview(directories, ()))
    return (
        f"{count} grant{'' if count == 1 else 's'} in {directories.grants}, demands in {directories.demands}; "
        f"publishing in {directories.tokens}"
    )
