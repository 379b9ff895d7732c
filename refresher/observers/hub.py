"""Hands each event to every observer. Each observer has a thread and a bounded queue of its own."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import msgspec

from refresher.common.errors import RefresherError
from refresher.common.signals import StopSignals
from refresher.common.throttle import Throttle
from refresher.config import Settings
from refresher.operations.events import Event

__all__ = ["EventsLost", "Observer", "Observers", "observing"]

log = logging.getLogger(__name__)

_LONGEST_QUEUE: Final = 4096
_LARGEST_BATCH: Final = 256
_LOOK: Final = 0.1
"""Seconds between two looks at a signal."""
_OUTPUTS_INTERVAL: Final = 30.0


class EventsLost(Exception):
    """An observer has lost ``count`` of the events that it was given, and has taken the others.

    ``quiet``: it is no fault, so that cron mails no line about it.
    """

    def __init__(self, count: int, why: str, *, quiet: bool = False) -> None:
        super().__init__(why)
        self.count: Final = count
        self.quiet: Final = quiet


class Observer(Protocol):
    """Observes events in a thread of its own."""

    name: str
    """For messages and metrics."""
    patience: float
    """Seconds that the end of the process waits for it at most."""

    def observe(self, events: Sequence[Event]) -> None:
        """Take some events. If it raises, these events count as dropped."""

    def close(self) -> None:
        """Release what it holds: no event follows."""


class _Runner:
    """Runs one observer. It loses events, and counts them, if the observer is slow, hangs or raises."""

    def __init__(self, observer: Observer) -> None:
        self.observer: Final = observer
        self.dropped = 0
        self._queue: Final[queue.Queue[Event | None]] = queue.Queue(_LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._lock: Final = threading.Lock()
        self._counting: Final = threading.Lock()
        self._throttle: Final = Throttle()
        self._ended = False

    def put(self, event: Event) -> None:
        """Queue an event. Never waits."""
        try:
            with self._lock:  # rotations run in many threads, and the observer in one; none comes after the end
                ended = self._ended
                if not ended and self._thread is None:
                    # A daemon thread: an observer that hangs must not keep the process from its end.
                    thread = threading.Thread(target=self._run, name=f"observer-{self.observer.name}", daemon=True)
                    thread.start()
                    self._thread = thread
                if not ended:
                    self._queue.put_nowait(event)
            if ended:
                self._drop(1, "it has ended")
        except RuntimeError:
            self._drop(1, "the system starts no more threads")
        except queue.Full:
            self._drop(1, "it is too slow")

    def wait(self, ends: float, stopping: Callable[[], bool]) -> None:
        """Wait until it has ended, until ``ends`` (monotonic seconds) at most; ``stopping`` ends the wait."""
        while (left := ends - time.monotonic()) > 0 and not self.has_ended() and not stopping():
            if self._thread is not None:
                self._thread.join(min(left, _LOOK))

    def has_ended(self) -> bool:
        """Whether it observes nothing any more."""
        return self._ended and (self._thread is None or not self._thread.is_alive())

    def end(self) -> None:
        """Have it end once it has observed what is queued. Never waits."""
        with self._lock, suppress(queue.Full):
            self._ended = True
            self._queue.put_nowait(None)  # only wakes it

    def _run(self) -> None:
        while not (self._ended and self._queue.empty()):
            events = [self._queue.get()]
            while len(events) < _LARGEST_BATCH and not self._queue.empty():
                events.append(self._queue.get())
            batch = [event for event in events if event is not None]
            try:
                if batch:
                    self.observer.observe(batch)
            except EventsLost as lost:
                self._drop(lost.count, str(lost), logging.INFO if lost.quiet else logging.WARNING)
            except Exception as error:  # noqa: BLE001  an observer that fails loses its events and nothing else
                self._drop(len(batch), _why(error))
        try:
            self.observer.close()
        except Exception as error:  # noqa: BLE001  likewise
            log.info("%s: cannot be closed: %s", self.observer.name, _why(error))

    def _drop(self, count: int, why: str, level: int = logging.WARNING) -> None:
        with self._counting:
            self.dropped += count
            # By its level: a quiet message must not take the place of a warning.
            warns = self._throttle.is_new(level)
        if warns:
            log.log(level, "%s: events are lost (%d so far): %s", self.observer.name, self.dropped, why)


class Observers:
    """Emits the events of one process to its observers, which are made when the first event comes."""

    def __init__(self, program: str, settings: Settings) -> None:
        self._program: Final = program
        self._settings = settings
        self._lock: Final = threading.Lock()
        self._runners: tuple[_Runner, ...] | None = None
        self._added: list[_Runner] = []
        self._former: list[_Runner] = []
        self._lost: dict[str, int] = {}
        """How many events the former observers have lost that have ended."""
        self._closed = False
        self._outputs_checked = float("-inf")

    def add(self, observer: Observer) -> None:
        """Add an observer that belongs to this process, and not to its configuration."""
        self._added.append(_Runner(observer))

    def emit(self, event: Event) -> None:
        """Hand ``event`` to all observers. Never waits, never raises; safe in any thread."""
        try:
            event = msgspec.structs.replace(event, program=self._program, pid=os.getpid())
            for added in self._added:
                added.put(event)
            with self._lock:  # none goes to an observer that a reload is ending
                for runner in self._configured():
                    runner.put(event)
        except Exception as error:  # noqa: BLE001  whatever fails here, the rotation goes on
            log.warning("an event is lost: %s", _why(error))

    def check_outputs(self) -> None:
        """Have all outputs of the configuration brought up to date, if the last time was 30 s ago. Never waits."""
        now = time.monotonic()
        if not self._settings.outputs or now - self._outputs_checked < _OUTPUTS_INTERVAL:
            return
        self._outputs_checked = now
        from refresher.observers.outputs import EVERY

        try:
            with self._lock:
                for runner in self._configured():
                    if runner.observer.name == "outputs":
                        runner.put(EVERY)
        except Exception as error:  # noqa: BLE001  likewise
            log.warning("the outputs are not checked: %s", _why(error))

    def dropped(self) -> dict[str, int]:
        """Return how many events each observer has lost."""
        with self._lock:
            counts = dict(self._lost)
            for runner in (*(self._runners or ()), *self._former, *self._added):
                counts[runner.observer.name] = counts.get(runner.observer.name, 0) + runner.dropped
        return counts

    def hook_failures(self) -> dict[str, int]:
        """Return how many runs of each configured hook have failed."""
        if self._settings.hooks is None:
            return {}
        from refresher.observers import hooks

        return {hook: hooks.failures.get(hook, 0) for hook in self._settings.hooks.commands}

    def use(self, settings: Settings) -> None:
        """Use the observers of ``settings`` from now on; the former ones complete what they have."""
        self._outputs_checked = float("-inf")
        with self._lock:
            if _what_observers_need(settings) == _what_observers_need(self._settings):
                return
            former, self._runners, self._settings = self._runners or (), None, settings
            for runner in (each for each in self._former if each.has_ended()):
                self._lost[runner.observer.name] = self._lost.get(runner.observer.name, 0) + runner.dropped
            self._former = [*(each for each in self._former if not each.has_ended()), *former]
        for runner in former:
            runner.end()

    def close(self, longest: float = float("inf"), stopping: Callable[[], bool] = lambda: False) -> None:
        """Wait until all have observed what has happened, for the patience of each and ``longest`` seconds at most.

        ``stopping`` ends the wait. A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        with self._lock:
            runners = (*(self._runners or ()), *self._added)
        for runner in runners:
            runner.end()
        began, came = time.monotonic(), False

        def stop() -> bool:
            nonlocal came
            came = came or stopping()  # a signal is reported once, and ends the wait for all
            return came

        for runner in runners:
            runner.wait(began + min(runner.observer.patience, longest), stop)

    def _configured(self) -> tuple[_Runner, ...]:
        """Return the runners of the settings; the caller holds the lock."""
        if self._runners is None:
            made: tuple[_Runner, ...] = ()
            try:
                made = tuple(_Runner(observer) for observer in _configured(self._settings))
            finally:
                self._runners = made  # also if they cannot be made: that is reported once
        return self._runners


def _what_observers_need(settings: Settings) -> tuple[object, ...]:
    return settings.directories, settings.history_days, settings.history_mb, settings.hooks, settings.outputs


def _configured(settings: Settings) -> Sequence[Observer]:
    """Return the observers that the settings name."""
    found: list[Observer] = []
    if settings.history_days and settings.history_mb:
        from refresher.observers.history import History  # a run with nothing due needs none

        found.append(History(settings.directories, days=settings.history_days, megabytes=settings.history_mb))
    if settings.hooks is not None:
        from refresher.observers.hooks import Hooks  # most configurations have none

        found.append(Hooks(settings.hooks, settings.directories))
    if settings.outputs:
        from refresher.observers.outputs import Outputs  # likewise

        found.append(Outputs(settings.outputs, settings.directories))
    return found


def _why(error: Exception) -> str:
    """Return the reason of an error as a text for a person."""
    if isinstance(error, RefresherError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"internal error ({type(error).__name__}); please report it"


@contextmanager
def observing(settings: Settings, program: str, longest: float = float("inf")) -> Iterator[Observers]:
    """Have events observed during the command ``program``, as ``settings`` say.

    ``longest``: seconds that the command waits for its observers at the end at most. A signal ends that wait.
    """
    observers = Observers(program, settings)
    try:
        yield observers
    finally:
        with StopSignals(quiet=True) as stopping:
            observers.close(longest, stopping)
