"""Who may rotate at the same time: first a place in this queue, then the lock."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

__all__ = ["AT_ONCE", "AT_ONE_SERVER", "run_all"]

AT_ONCE: Final = 64
AT_ONE_SERVER: Final = 8
_LOOK_AGAIN: Final = 0.2

T = TypeVar("T")
R = TypeVar("R")


def run_all(
    jobs: Sequence[tuple[str, T]],
    work: Callable[[T], R],
    *,
    stopping: Callable[[], bool],
    waiting: Callable[[list[T]], None] = lambda _: None,
) -> list[R]:
    """Do ``work`` on each job in a thread of its own; return the results in the order of the jobs.

    A job is ``(server, what)``: at most 64 run at once, and at most 8 of one server, so that a server which hangs
    delays nobody else's. Threads are not daemons: what has begun is finished. ``work`` must not raise and must ask
    ``stopping`` itself; ``waiting`` is called now and then with what is under way.
    """
    return _Run(jobs, work, waiting).results(stopping)


class _Run(Generic[T, R]):
    def __init__(
        self, jobs: Sequence[tuple[str, T]], work: Callable[[T], R], waiting: Callable[[list[T]], None]
    ) -> None:
        self._jobs = jobs
        self._work = work
        self._waiting = waiting
        self._queue = list(range(len(jobs)))
        self._running: dict[int, threading.Thread] = {}
        self._at_server: Counter[str] = Counter()
        self._done: dict[int, R] = {}
        self._changed = threading.Condition()

    def results(self, stopping: Callable[[], bool]) -> list[R]:
        with self._changed:
            while self._queue or self._running:
                # A job that finds the flag set ends at once by itself, so each still gets its result.
                self._start_what_fits(everything=stopping())
                if (self._queue or self._running) and not self._changed.wait(_LOOK_AGAIN):
                    self._waiting([self._jobs[index][1] for index in self._running])
        return [self._done[index] for index in range(len(self._jobs))]

    def _start_what_fits(self, *, everything: bool) -> None:
        for index in list(self._queue):
            server, _ = self._jobs[index]
            if len(self._running) >= AT_ONCE:
                return
            if everything or self._at_server[server] < AT_ONE_SERVER:
                self._queue.remove(index)
                self._at_server[server] += 1
                thread = threading.Thread(target=self._run, args=(index,), name=f"rotation-{index}")
                self._running[index] = thread
                try:
                    thread.start()
                except RuntimeError:
                    self._without_a_thread(index)
                    return

    def _without_a_thread(self, index: int) -> None:
        """Put a job back for which the system has no thread; where nothing runs that could end, do it here."""
        server, job = self._jobs[index]
        del self._running[index]
        self._at_server[server] -= 1
        if self._running:
            self._queue.insert(0, index)
        else:
            self._done[index] = self._work(job)
            self._changed.notify()

    def _run(self, index: int) -> None:
        server, job = self._jobs[index]
        result = self._work(job)
        with self._changed:
            self._done[index] = result
            self._at_server[server] -= 1
            del self._running[index]
            self._changed.notify()
