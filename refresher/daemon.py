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

from refresher import told, urls, words
from refresher.config import Settings
from refresher.directories import Directories
from refresher.errors import ConfigError, DirectoryError, GrantFileError
from refresher.exchange import DEADLINE
from refresher.grant import Grant
from refresher.look import Look, look
from refresher.overview import overview
from refresher.places import Finished, Places
from refresher.policy import Rest
from refresher.result import EXIT_CODES, Result
from refresher.rotation import Order, Terms, rotate
from refresher.signals import Listening
from refresher.timetable import Timetable
from refresher.tls import trusted
from refresher.watch import Watch

__all__ = ["LEAST_GRACE", "Daemon"]

log = logging.getLogger(__name__)

LEAST_GRACE: Final = 10.0
"""Seconds: with less, no exchange could be given the time it needs."""

_TO_SAVE: Final = 5.0
_LOOK_EACH: Final = 0.2
_SHARE_OF_LOOKING: Final = 0.2
_LAST_PAUSE: Final = 30.0
_FURTHEST: Final = 86400.0
_TELL_AGAIN: Final = 600.0


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


class _Futile(msgspec.Struct, frozen=True):
    """The lock was held ``times`` in a row and still is needed: not before ``until`` (monotonic seconds) again."""

    times: int
    until: float


class Daemon:
    """Rotates on time, until it is told to stop."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], *, grace: float) -> None:
        self._settings = settings
        self._reread = reread
        self._grace = grace
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._signals = Listening(lambda: self._events.put(_Awake()))
        self._timetable = Timetable(lambda name: self._events.put(_Due(name)))
        self._places: Places[_Job, Result | None] = Places(_carry_out, self._events.put)
        self._watch = Watch(settings.directories)
        self._busy: set[str] = set()
        self._futile: dict[str, _Futile] = {}
        self._told: dict[str, tuple[str, float]] = {}
        self._look_around_at = float("-inf")

    def run(self) -> int:
        """Watch and rotate until SIGINT or SIGTERM; return the exit code.

        Raises ``ConfigError`` and ``DirectoryError`` where it cannot even begin.
        """
        with self._signals:
            log.info("%s", _ready(self._settings))
            self._timetable.start()
            try:
                while not self._signals():
                    if self._signals.asked_to_reread():
                        self._reconfigure()
                    self._look_around()
                    self._places.begin()
                    self._hear(self._look_around_at - time.monotonic())
            finally:
                self._timetable.stop()
            return self._drain()

    def _look_around(self) -> None:
        began = time.monotonic()
        if began < self._look_around_at:
            return
        try:
            changed = self._watch.changed()
        except DirectoryError as error:
            self._tell("", "", logging.ERROR, str(error))
            changed = set()
        else:
            self._told.pop("", None)
        for name in sorted(changed):
            self._look(name)
        # However many files somebody has made to be looked at, most of the time is for something else.
        took = time.monotonic() - began
        self._look_around_at = began + max(_LOOK_EACH, took / _SHARE_OF_LOOKING)

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
            self._timetable.drop(name)
            self._tell(name, "invalid_grant_file", logging.WARNING, f"{name}: invalid_grant_file: {error}")
            return
        except Exception as error:  # noqa: BLE001  a fault of ours in one grant must not keep the others from theirs
            self._timetable.plan(name, time.time() + _LAST_PAUSE)
            self._tell(name, "fault", logging.ERROR, f"{name}: a fault in refresher itself ({type(error).__name__})")
            return
        if seen.needs_lock:
            self._queue(seen)
        elif isinstance(seen.record, Grant) and isinstance(seen.decision, Rest):
            self._rest(seen.record, seen.decision)
        else:
            self._timetable.drop(name)
            self._futile.pop(name, None)
            self._told.pop(name, None)

    def _queue(self, seen: Look) -> None:
        futile = self._futile.get(seen.name)
        if futile is not None and (remaining := futile.until - time.monotonic()) > 0:
            self._timetable.plan(seen.name, time.time() + remaining)
            return
        self._timetable.drop(seen.name)
        self._busy.add(seen.name)
        terms = Terms(
            ca_file=self._settings.ca_file,
            stopping=self._signals,
            deadline=min(DEADLINE, self._grace - _TO_SAVE),
        )
        job = _Job(self._settings.directories, Order(name=seen.name, seen=seen.generation), terms)
        self._places.join(seen.server, job)
        self._places.begin()

    def _rest(self, grant: Grant, rest: Rest) -> None:
        self._futile.pop(grant.name, None)
        if rest.until is None:
            self._timetable.drop(grant.name)
        else:
            if grant.failure is not None and grant.failure.busy:
                self._places.hold(urls.origin(grant.token_endpoint), time.monotonic() + rest.until - time.time())
            self._timetable.plan(grant.name, min(rest.until, time.time() + _FURTHEST))
        if rest.because == "not_due":
            self._told.pop(grant.name, None)
        else:
            # What this daemon did not cause is news as well: a grant that was dead at the start, or died elsewhere.
            self._tell_result(told.rested(grant, rest))

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
            case _Due() if not self._signals():
                self._look(event.name)
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
        before = self._futile.pop(name, None)
        times = 0 if before is None else before.times
        if result is None or result.outcome not in ("rotated", "adopted"):
            # Looked at anew it rests, as a rule; where it does not, what did not help shall not be done all the time.
            self._futile[name] = _Futile(times + 1, time.monotonic() + min(2.0**times, _LAST_PAUSE))
        # Only after the next listing: the present one still has the attempt that has just ended.
        self._watch.forget(name)
        if result is not None and result.outcome != "interrupted":
            self._tell_result(result, happened=times == 0)

    def _reconfigure(self) -> None:
        try:
            settings = self._reread()
            ready = _ready(settings)
        except (ConfigError, DirectoryError) as error:
            log.error("the configuration is kept as it was: %s", error)  # noqa: TRY400  a person's mistake, no fault
            return
        if settings.directories != self._settings.directories:
            for name in self._watch.names():
                self._timetable.drop(name)
            self._watch = Watch(settings.directories)
            self._futile.clear()
            self._told.clear()
        self._settings = settings
        self._look_around_at = float("-inf")
        log.info("the configuration was read again: %s", ready)

    def _drain(self) -> int:
        """Let what is under way come to its end: killed now, it could lose a refresh token."""
        self._places.forget_waiting()
        if self._places.working():
            log.info("stopping; first %s is finished", self._under_way())
        ends = time.monotonic() + self._grace
        while self._places.working():
            self._hear(0.2)
            if self._signals.asked_again():
                log.warning("still finishing %s; killed now, their new refresh tokens could be lost", self._under_way())
            if time.monotonic() > ends:
                ends = float("inf")
                log.critical(
                    "the grace of %s is over, and %s is not saved: killed now, their new refresh tokens are lost",
                    words.span(self._grace),
                    self._under_way(),
                )
        log.info("stopped")
        return 0

    def _under_way(self) -> str:
        names = sorted(job.order.name for job in self._places.working())
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    def _tell_result(self, result: Result, *, happened: bool = False) -> None:
        grave = EXIT_CODES[result.outcome] != 0
        level = logging.WARNING if grave else logging.INFO if result.outcome == "rotated" else logging.DEBUG
        if happened:
            self._told.pop(result.name, None)
        which = f" (generation {result.generation})" if result.outcome == "rotated" else ""
        self._tell(result.name, result.outcome, level, f"{result.name}: {result.outcome}{which}: {result.detail}")

    def _tell(self, name: str, what: str, level: int, line: str) -> None:
        """Log ``line``, unless ``what`` was the last news of ``name`` and not long ago."""
        before, at = self._told.get(name, (None, 0.0))
        now = time.monotonic()
        if before != what or now - at > _TELL_AGAIN:
            self._told[name] = (what, now)
            log.log(level, "%s", line)


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
        f"watching {count} grant{'' if count == 1 else 's'} in {directories.grants}, demands in {directories.demands}; "
        f"publishing in {directories.tokens}"
    )
