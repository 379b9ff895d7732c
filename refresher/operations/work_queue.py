"""The work queue: which rotations run at the same time, and how many requests each server gets."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["BURST", "MAX_PER_SERVER", "MAX_RUNNING", "RATE", "Finished", "RateLimit", "WorkQueue", "run_all"]

MAX_RUNNING: Final = 128
MAX_PER_SERVER: Final = 8
RATE: Final = 20.0
"""Requests per second to one server."""

BURST: Final = 40
"""Requests to one server at once, when there were none for a while."""

_SLOW: Final = 5.0
_PROGRESS_INTERVAL: Final = 0.2

T = TypeVar("T")
R = TypeVar("R")


class RateLimit:
    """A token bucket for the requests to one server. Times are monotonic seconds."""

    def __init__(self) -> None:
        # When the bucket is full again, as a number of requests at the rate: a request takes 1.
        self._full_at = float("-inf")
        self._held_until = float("-inf")

    def next_at(self, now: float) -> float:
        """Return when the next request is allowed; ``now`` or earlier: at once."""
        return max(now, (self._full_at - (BURST - 1)) / RATE, self._held_until)

    def take(self, now: float) -> None:
        """Count a request."""
        self._full_at = max(self._full_at, now * RATE) + 1

    def hold(self, until: float) -> None:
        """Allow no request before ``until``: the server sent ``Retry-After`` (RFC 9110 section 10.2.3)."""
        self._held_until = max(self._held_until, until)


class Finished(NamedTuple, Generic[T, R]):
    """A finished job and its result."""

    server: str
    job: T
    result: R
    took: float
    """Seconds."""


class WorkQueue(Generic[T, R]):
    """Runs ``work`` on jobs: at most 128 at the same time, and at most 8 for one server, within its rate limit.

    A server whose last job took more than 5 s gets one job at a time until a job is faster, so that a server that hangs
    does not delay the jobs of others.

    Each job has its own thread, not a daemon thread: a started job always finishes. ``work`` must not raise.
    ``on_finished`` is called in that thread. One other thread calls all methods, and passes each ``Finished`` to
    ``done``.
    """

    def __init__(self, work: Callable[[T], R], on_finished: Callable[[Finished[T, R]], None]) -> None:
        self._work = work
        self._on_finished = on_finished
        self._waiting: dict[str, deque[T]] = {}
        # Servers that may start a job, in turn; and servers that the rate limit delays, until a monotonic second.
        self._turns: dict[str, None] = {}
        self._delayed: dict[str, float] = {}
        self._slow: set[str] = set()
        self._limits: defaultdict[str, RateLimit] = defaultdict(RateLimit)
        self._running_at: Counter[str] = Counter()
        self._running: list[T] = []

    def running(self) -> list[T]:
        """Return the running jobs; safe in any thread, and in a signal handler."""
        return self._running.copy()

    def put(self, server: str, job: T, *, first: bool = False) -> None:
        """Queue a job, or put it ``first``; ``start_jobs`` starts it."""
        jobs = self._waiting.setdefault(server, deque())
        if first:
            jobs.appendleft(job)
        else:
            jobs.append(job)
        self._add_turn(server)

    def room(self) -> int:
        """Return how many more jobs may run now or soon, of all servers together."""
        return MAX_RUNNING - len(self._running) - sum(map(len, self._waiting.values()))

    def rooms(self) -> dict[str, int]:
        """Return how many more jobs each server may run that has one here; any other may run ``MAX_PER_SERVER``."""
        here = Counter({server: len(jobs) for server, jobs in self._waiting.items()}) + self._running_at
        return {
            server: max((1 if server in self._slow else MAX_PER_SERVER) - number, 0) for server, number in here.items()
        }

    def drop_waiting(self) -> list[T]:
        """Remove the jobs that have not started, and return them."""
        dropped = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        self._turns.clear()
        self._delayed.clear()
        return dropped

    def hold(self, server: str, until: float) -> None:
        """Start no job of ``server`` before ``until`` (monotonic seconds)."""
        self._limits[server].hold(until)

    def start_jobs(self) -> float:
        """Start the jobs that may run now; return the seconds until a rate limit allows the next one."""
        now = time.monotonic()
        for server in [server for server, next_at in self._delayed.items() if next_at <= now]:
            del self._delayed[server]
            self._add_turn(server)
        while self._turns and len(self._running) < MAX_RUNNING:
            server = next(iter(self._turns))
            del self._turns[server]
            limit = self._limits[server]
            if (next_at := limit.next_at(now)) > now:
                self._delayed[server] = next_at
                continue
            jobs = self._waiting[server]
            job = jobs.popleft()
            if not self._start(server, job):
                jobs.appendleft(job)
                self._add_turn(server)
                break
            limit.take(now)
            if not jobs:
                del self._waiting[server]
            self._add_turn(server)
        return min(self._delayed.values(), default=float("inf")) - now

    def done(self, finished: Finished[T, R]) -> None:
        """Note that a job has finished, so that another can start."""
        self._running.remove(finished.job)
        self._running_at[finished.server] -= 1
        if finished.took > _SLOW:
            self._slow.add(finished.server)
        else:
            self._slow.discard(finished.server)
        self._add_turn(finished.server)

    def _add_turn(self, server: str) -> None:
        """Give a server a turn if it has a waiting job and may run one more."""
        limit = 1 if server in self._slow else MAX_PER_SERVER
        if server in self._waiting and server not in self._delayed and self._running_at[server] < limit:
            self._turns[server] = None

    def _start(self, server: str, job: T) -> bool:
        thread = threading.Thread(target=self._run, args=(server, job))
        self._running.append(job)
        self._running_at[server] += 1
        try:
            thread.start()
        except RuntimeError:
            # The system has no thread left. If no job runs that could end and free one, run this job here.
            if len(self._running) > 1:
                self._running.remove(job)
                self._running_at[server] -= 1
                return False
            self._run(server, job)
        return True

    def _run(self, server: str, job: T) -> None:
        started = time.monotonic()
        result = self._work(job)
        self._on_finished(Finished(server, job, result, time.monotonic() - started))


def run_all(
    jobs: Sequence[tuple[str, T]],
    work: Callable[[T], R],
    *,
    stopping: Callable[[], bool],
    progress: Callable[[list[T]], None] = lambda _: None,
) -> list[R]:
    """Run ``work`` on each ``(server, job)`` in a ``WorkQueue``; return the results in the order of the jobs.

    ``work`` must check ``stopping`` itself. ``progress`` is called repeatedly with the running jobs.
    """
    finished_jobs: SimpleQueue[Finished[tuple[int, T], R]] = SimpleQueue()
    queue: WorkQueue[tuple[int, T], R] = WorkQueue(lambda numbered: work(numbered[1]), finished_jobs.put)
    for number, (server, job) in enumerate(jobs):
        queue.put(server, (number, job))
    results: dict[int, R] = {}
    while len(results) < len(jobs):
        if stopping() and (waiting := queue.drop_waiting()):
            # After a stop each returns at once, so that each has a result.
            results |= {number: work(job) for number, job in waiting}
            continue
        pause = queue.start_jobs()
        try:
            finished = finished_jobs.get(timeout=min(pause, _PROGRESS_INTERVAL))
        except Empty:
            progress([job for _, job in queue.running()])
            continue
        queue.done(finished)
        results[finished.job[0]] = finished.result
    return [results[number] for number in range(len(jobs))]
