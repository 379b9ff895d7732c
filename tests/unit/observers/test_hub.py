"""Observers that are slow, hang, raise, or have no thread: no rotation waits for one, and what is lost is counted."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.config import Settings, resolve
from refresher.observers import hub
from refresher.observers.hub import Observers
from refresher.operations.events import Event, happened
from tests.support.command import wait_until


class Noting:
    """An observer that notes what it observes, after ``before``."""

    def __init__(self, name: str = "noting", patience: float = 60.0) -> None:
        self.name, self.patience = name, patience
        self.batches: list[list[Event]] = []
        self.closed = 0
        self.threads: set[int] = set()

    def observe(self, events: Sequence[Event]) -> None:
        self.threads.add(threading.get_ident())
        self.before()
        self.batches.append([*events])

    def before(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed += 1

    @property
    def generations(self) -> list[int | None]:
        return [event.generation for batch in self.batches for event in batch]


class Hanging(Noting):
    """An observer that waits until it is released."""

    def __init__(self, patience: float = 60.0) -> None:
        super().__init__("hanging", patience)
        self.reached, self.released = threading.Event(), threading.Event()

    def before(self) -> None:
        self.reached.set()
        assert self.released.wait(90)


class Raising(Noting):
    """An observer that raises at each batch."""

    def before(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings without observers of their own."""
    return resolve({"state_dir": str(tmp_path / "state"), "history_days": 0}, None)


def _emit(observers: Observers, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        observers.emit(happened("linear", "rotated", generation=number))


def test_every_observer_gets_all_events_in_order(settings: Settings) -> None:
    """If it failed, a history would show rotations in another order, or without the command they happened in."""
    observers, one, other = Observers("run-once", settings), Noting(), Noting("other")
    observers.add(one)
    observers.add(other)
    _emit(observers, 1000)
    observers.close()
    assert one.generations == other.generations == [*range(1000)]
    assert {event.program for batch in one.batches for event in batch} == {"run-once"}
    assert max(map(len, one.batches)) <= 256
    assert (one.closed, observers.dropped()) == (1, {"noting": 0, "other": 0})


def test_events_of_many_threads_have_one_thread_for_an_observer(settings: Settings) -> None:
    """If it failed, two threads would use one database at once, or events of a run would be lost and not counted."""
    observers, noting = Observers("run", settings), Noting()
    observers.add(noting)
    ready = threading.Barrier(16)

    def emit(number: int) -> None:
        ready.wait(60)
        _emit(observers, 10, 10 * number)

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    observers.close()
    assert sorted(map(str, noting.generations)) == sorted(map(str, range(160)))
    assert len(noting.threads) == 1


def test_events_that_come_while_the_observers_are_made_are_not_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, the first rotations of each run would be missing in the history."""
    making, go, noting = threading.Event(), threading.Event(), Noting()

    def make(_: Settings) -> list[Noting]:
        making.set()
        assert go.wait(60)
        return [noting]

    monkeypatch.setattr(hub, "_configured", make)
    observers = Observers("run", settings)
    threads = [threading.Thread(target=_emit, args=(observers, 1, number)) for number in range(2)]
    threads[0].start()
    assert making.wait(60)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(60)
    observers.close()
    assert sorted(map(str, noting.generations)) == ["0", "1"]


def test_a_batch_that_raises_is_counted_and_warned_of_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a full disk would fill the log, or its losses would be a secret."""
    observers, raising, noting = Observers("run", settings), Raising("raising"), Noting()
    observers.add(raising)
    observers.add(noting)
    for number in range(3):
        _emit(observers, 5, 5 * number)
        wait_until(lambda: observers.dropped()["raising"] == 5 * (number + 1), "they are counted")  # noqa: B023
    observers.close()
    assert len(noting.generations) == 15
    (warning,) = caplog.messages
    assert "raising: events are lost" in warning
    assert warning.endswith(": No space left on device")


def test_an_observer_that_hangs_loses_events_and_holds_up_nothing(settings: Settings) -> None:
    """If it failed, a disk that hangs would hold up rotations, or take all memory."""
    observers, hanging, noting = Observers("run", settings), Hanging(patience=0.05), Noting()
    observers.add(hanging)
    observers.add(noting)
    _emit(observers, 1)
    assert hanging.reached.wait(60)
    _emit(observers, 4096 + 100, first=1)
    assert observers.dropped()["hanging"] == 100
    observers.close()  # it returns although the observer hangs
    assert (hanging.batches, hanging.closed) == ([], 0)
    hanging.released.set()
    wait_until(lambda: hanging.closed == 1, "it ends once it goes on")
    assert len(hanging.generations) == 4097


def test_events_are_counted_where_no_thread_can_be_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a limit of processes would stop rotations for the sake of a log."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    observers, noting = Observers("run", settings), Noting()
    observers.add(noting)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        _emit(observers, 3)
    assert observers.dropped() == {"noting": 3}
    assert "the system starts no more threads" in caplog.text
    _emit(observers, 1, first=3)
    observers.close()
    assert noting.generations == [3]


def test_emit_never_raises(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, an observer that cannot be made would make a rotation that succeeded a failure."""

    def fail(_: Settings) -> list[Noting]:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(hub, "_configured", fail)
    observers, noting = Observers("run-once", settings), Noting()
    observers.add(noting)
    _emit(observers, 3)
    observers.close()
    assert noting.generations[-2:] == [1, 2], "the others go on"
    (warning,) = caplog.messages
    assert warning == "an event is lost: Read-only file system"


def test_each_event_is_observed_or_counted_while_settings_change(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a reload would lose events that nobody counts."""
    made: list[Noting] = []

    def make(_: Settings) -> list[Noting]:
        made.append(Noting())
        return [made[-1]]

    monkeypatch.setattr(hub, "_configured", make)
    observers = Observers("run", settings)
    threads = [threading.Thread(target=_emit, args=(observers, 500, 500 * number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        observers.use(msgspec.structs.replace(settings, history_days=number % 2 + 1))
    for thread in threads:
        thread.join(60)
    observers.close()
    wait_until(lambda: all(each.closed for each in made), "all end")
    observed = [generation for each in made for generation in each.generations]
    assert len(observed) == len({*observed})
    assert len(observed) + observers.dropped().get("noting", 0) == 2000


def test_an_event_that_comes_as_an_observer_ends_is_counted(settings: Settings) -> None:
    """If it failed, the last rotation before a reload could be missing in the history and in the count of losses."""
    noting = Noting()
    runner = hub._Runner(noting)
    runner.put(happened("linear", "rotated", generation=0))
    add = runner._queue.put_nowait

    def end_first(event: Event | None) -> None:
        if event is not None:
            ending = threading.Thread(target=runner.end)
            ending.start()
            ending.join(0.2)  # without the lock, it ends the observer here
            if not ending.is_alive():
                wait_until(runner.has_ended, "it ends")
        add(event)

    runner._queue.put_nowait = end_first  # type: ignore[method-assign, assignment]
    runner.put(happened("linear", "rotated", generation=1))
    wait_until(runner.has_ended, "it ends")
    assert len(noting.generations) + runner.dropped == 2


def test_after_a_reload_the_former_observers_complete_what_they_have(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a reload would lose events, or forget how many were lost before."""
    former, latter = Hanging(), Noting("hanging")
    made: list[Any] = [latter, former]
    monkeypatch.setattr(hub, "_configured", lambda _: [made.pop()])
    observers = Observers("run", settings)
    _emit(observers, 1)
    assert former.reached.wait(60)
    _emit(observers, 4096 + 7, first=1)
    observers.use(msgspec.structs.replace(settings, history_days=7))
    _emit(observers, 1, first=9000)
    former.released.set()
    wait_until(lambda: former.closed == 1, "the former one ends")
    observers.close()
    assert former.generations == [*range(4097)]
    assert latter.generations == [9000]
    assert observers.dropped() == {"hanging": 7}
