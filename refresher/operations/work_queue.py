"""Who may rotate at the same time: first a place in this queue, then the lock."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, Generic, NamedTuple, TypeVar

from refresher.operations.budget import Budget

__all__ = ["AT_ONCE", "AT_ONE_SERVER", "Finished", "Places", "run_all"]

AT_ONCE: Final = 128
AT_ONE_SERVER: Final = 8
_SLOW: Final = 5.0
_LOOK_AGAIN: Final = 0.2

T = TypeVar("T")
R = TypeVar("R")


class Finished(NamedTuple, Generic[T, R]):
    """A job that is done, and what came of it."""

    server: str
    job: T
    result: R
    place: int
    took: float
    """Seconds."""


class Places(Generic[T, R]):
    """Does ``work`` on jobs: at most 128 at once, and at most 8 of one server, within its budget.

    A server whose last job took longer than 5 s has one place until one is quicker. So servers that hang delay nobody
    else's jobs, and none is run over. Each job has a thread of its own, which is no
    daemon: what has begun is finished. ``work`` must not raise. ``tell`` is called in that thread when it is done;
    everything else is for one thread alone, which hands each ``Finished`` back to ``leave``.
    """

    def __init__(self, work: Callable[[T], R], tell: Callable[[Finished[T, R]], None]) -> None:
        self._work = work
        self._tell = tell
        self._waiting: dict[str, deque[T]] = {}
        # Servers that may begin a job, in turn; and those that may later, with the monotonic second.
        self._turns: dict[str, None] = {}
        self._later: dict[str, float] = {}
        self._slow: set[str] = set()
        self._budgets: dict[str, Budget] = {}
        self._at_server: Counter[str] = Counter()
        self._working: dict[int, T] = {}
        self._next_place = 0

    def working(self) -> list[T]:
        """Return the jobs under way; may be asked by any thread, and by a signal."""
        return list(self._working.values())

    def join(self, server: str, job: T, *, first: bool = False) -> None:
        """Queue a job, or put it ``first``; ``begin`` starts it."""
        jobs = self._waiting.setdefault(server, deque())
        if first:
            jobs.appendleft(job)
        else:
            jobs.append(job)
        self._take_a_turn(server)

    def forget_waiting(self) -> list[T]:
        """Drop the jobs that have not begun, and return them."""
        forgotten = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        self._turns.clear()
        self._later.clear()
        return forgotten

    def hold(self, server: str, until: float) -> None:
        """Begin no job of ``server`` before ``until`` (monotonic seconds)."""
        self._budget(server).hold(until)

    def begin(self, *, everything: bool = False) -> float:
        """Start what fits, and return for how many seconds a call again would start no more for want of budget.

        ``everything``: however many are of one server, and whatever its budget.
        """
        now = time.monotonic()
        if everything:
            self._turns = dict.fromkeys(self._waiting)
            self._later.clear()
        for server in [server for server, opens_at in self._later.items() if opens_at <= now]:
            del self._later[server]
            self._take_a_turn(server)
        while self._turns and len(self._working) < AT_ONCE:
            server = next(iter(self._turns))
            del self._turns[server]
            budget = self._budget(server)
            if not everything and (opens_at := budget.opens_at(now)) > now:
                self._later[server] = opens_at
                continue
            jobs = self._waiting[server]
            job = jobs.popleft()
            if not self._start(server, job):
                jobs.appendleft(job)
                self._take_a_turn(server)
                break
            budget.take(now)
            if not jobs:
                del self._waiting[server]
            elif everything:
                self._turns[server] = None
            else:
                self._take_a_turn(server)
        return min(self._later.values(), default=float("inf")) - now

    def _take_a_turn(self, server: str) -> None:
        """Line up a server that has jobs waiting and a place for one."""
        places = 1 if server in self._slow else AT_ONE_SERVER
        if server in self._waiting and server not in self._later and self._at_server[server] < places:
            self._turns[server] = None

    def _budget(self, server: str) -> Budget:
        if server not in self._budgets:
            self._budgets[server] = Budget(time.monotonic())
        return self._budgets[server]

    def leave(self, finished: Finished[T, R]) -> None:
        """Free the place of a finished job."""
        del self._working[finished.place]
        self._at_server[finished.server] -= 1
        if finished.took > _SLOW:
            self._slow.add(finished.server)
        else:
            self._slow.discard(finished.server)
        self._take_a_turn(finished.server)

    def _start(self, server: str, job: T) -> bool:
        place = self._next_place = self._next_place + 1
        thread = threading.Thread(target=self._do, args=(server, job, place), name=f"rotation-{place}")
        self._working[place] = job
        self._at_server[server] += 1
        try:
            thread.start()
        except RuntimeError:
            # The system has no thread to give. Where nothing runs that could end, do it here.
            if len(self._working) > 1:
                del self._working[place]
                self._at_server[server] -= 1
                return False
            self._do(server, job, place)
        return True

    def _do(self, server: str, job: T, place: int) -> None:
        began = time.monotonic()
        result = self._work(job)
        self._tell(Finished(server, job, result, place, time.monotonic() - began))


def run_all(
    jobs: Sequence[tuple[str, T]],
    work: Callable[[T], R],
    *,
    stopping: Callable[[], bool],
    waiting: Callable[[list[T]], None] = lambda _: None,
) -> list[R]:
    """Do ``work`` on each ``(server, job)`` as ``Places`` does; return the results in the order of the jobs.

    ``work`` must ask ``stopping`` itself; ``waiting`` is called now and then with what is under way.
    """
    ended: SimpleQueue[Finished[tuple[int, T], R]] = SimpleQueue()
    places: Places[tuple[int, T], R] = Places(lambda numbered: work(numbered[1]), ended.put)
    for number, (server, job) in enumerate(jobs):
        places.join(server, (number, job))
    done: dict[int, R] = {}
    while len(done) < len(jobs):
        # A job that finds the flag set ends at once by itself, so each still gets its result.
        pause = places.begin(everything=stopping())
        try:
            finished = ended.get(timeout=min(pause, _LOOK_AGAIN))
        except Empty:
            waiting([job for _, job in places.working()])
            continue
        places.leave(finished)
        done[finished.job[0]] = finished.result
    return [done[number] for number in range(len(jobs))]
