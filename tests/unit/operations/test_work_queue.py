"""The work queue: parallel rotations and the limits of a server."""

import threading
from collections import Counter
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from refresher.operations import work_queue
from refresher.operations.work_queue import (
    BURST,
    MAX_PER_SERVER,
    MAX_RUNNING,
    RATE,
    Finished,
    RateLimit,
    WorkQueue,
    run_all,
)
from tests.support.command import wait_until


def test_the_limits_hold_and_a_server_that_hangs_delays_no_other() -> None:
    """If it failed, one server that hangs would delay the grants of all other servers."""
    release = threading.Event()
    lock = threading.Lock()
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    finished: list[str] = []

    def work(job: tuple[str, int]) -> tuple[str, int]:
        server = job[0]
        with lock:
            running[server] += 1
            running["all"] += 1
            for key in (server, "all"):
                most[key] = max(most[key], running[key])
        if server == "hanging":
            release.wait(90)
        with lock:
            running[server] -= 1
            running["all"] -= 1
            finished.append(server)
        return job

    jobs = [(server, (server, number)) for number in range(20) for server in ("hanging", *(f"s{n}" for n in range(10)))]
    results: list[list[tuple[str, int]]] = []
    runner = threading.Thread(target=lambda: results.append(run_all(jobs, work, stopping=lambda: False)))
    runner.start()
    wait_until(lambda: len([server for server in finished if server != "hanging"]) == 200, "all others are done")
    release.set()
    runner.join(90)
    assert results == [[job for _, job in jobs]], "the results are not in the order of the jobs"
    assert most["hanging"] == MAX_PER_SERVER
    assert most["all"] <= MAX_RUNNING


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_every_job_runs_even_if_the_system_has_no_threads_left(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    """If it failed, a process limit would end a run while rotations are in progress."""
    # A fake, because a real limit would affect pytest too.
    start = threading.Thread.start
    alive = threading.Semaphore(spare)

    def limited(thread: threading.Thread) -> None:
        if not alive.acquire(blocking=False):
            raise RuntimeError("can't start new thread")
        start(thread)

    def work(job: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            alive.release()
        return job

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert run_all([("one", number) for number in range(20)], work, stopping=lambda: False) == [*range(20)]


def test_every_job_returns_a_result_after_a_stop() -> None:
    """If it failed, after Ctrl-C some grants would have no result, or the command would hang."""
    assert run_all([("one", number) for number in range(500)], lambda job: job, stopping=lambda: True) == [*range(500)]


def test_requests_beyond_a_burst_are_spread() -> None:
    """If it failed, a server would treat a restart with a thousand grants as an attack."""
    limit = RateLimit()
    now = 100.0
    sent: list[float] = []
    while len(sent) < BURST + 100:
        now = max(now, limit.next_at(now))
        limit.take(now)
        sent.append(now)
    assert sent[BURST - 1] == 100.0
    assert sent[-1] == pytest.approx(100.0 + 100 / RATE)
    assert limit.next_at(now + 3600) == now + 3600
    limit.hold(now + 7200)
    assert limit.next_at(now + 3600) == now + 7200


def test_a_server_at_its_limit_does_not_delay_another_and_all_its_jobs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the many grants of one server would delay others, or some would never be rotated."""
    # A fake clock, because on a busy machine the real limit would be over before the other server has its turn.
    now = 1000.0
    monkeypatch.setattr(work_queue, "time", SimpleNamespace(monotonic=lambda: now))
    ended: SimpleQueue[Finished[str, str]] = SimpleQueue()
    queue: WorkQueue[str, str] = WorkQueue(lambda job: job, ended.put)
    for number in range(BURST + 5):
        queue.put("many", f"many-{number}")
    queue.put("held", "held-0")
    queue.hold("held", now + 3600)
    done: list[str] = []

    def turn() -> bool:
        queue.start_jobs()
        while not ended.empty():
            finished = ended.get()
            queue.done(finished)
            done.append(finished.job)
        return len(done) == BURST + 6

    wait_until(lambda: turn() or len(done) >= BURST, "the burst is over")
    queue.put("other", "other-0")
    wait_until(lambda: turn() or "other-0" in done, "the job of the other server has run")
    assert len(done) == BURST + 1, "the limit does not hold"
    now += 5 / RATE
    wait_until(turn, "all jobs have run")
    assert "held-0" not in done
    assert sorted(done) == sorted([*(f"many-{number}" for number in range(BURST + 5)), "other-0"])


def test_a_slow_server_gets_one_job_at_a_time_until_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a few servers that hang would use up the limit for all servers."""
    monkeypatch.setattr(work_queue, "_SLOW", 0.0)
    ended: SimpleQueue[Finished[int, int]] = SimpleQueue()
    release = threading.Semaphore(0)
    queue: WorkQueue[int, int] = WorkQueue(lambda job: (release.acquire(timeout=90) and job) or job, ended.put)
    for number in range(20):
        queue.put("slow", number)
    queue.start_jobs()
    assert len(queue.running()) == MAX_PER_SERVER
    for _ in range(MAX_PER_SERVER):
        release.release()
        queue.done(ended.get(timeout=90))
        queue.start_jobs()
    assert len(queue.running()) == 1
    monkeypatch.setattr(work_queue, "_SLOW", 1e9)
    release.release()
    queue.done(ended.get(timeout=90))
    queue.start_jobs()
    assert len(queue.running()) == MAX_PER_SERVER, "the server was fast, and still counts as slow"
    assert queue.drop_waiting()
    while queue.running():
        release.release()
        queue.done(ended.get(timeout=90))


def test_a_job_that_is_put_first_starts_first() -> None:
    """If it failed, a demand of an agent would wait behind a thousand scheduled rotations."""
    ended: SimpleQueue[Finished[str, str]] = SimpleQueue()
    queue: WorkQueue[str, str] = WorkQueue(lambda job: job, ended.put)
    for number in range(MAX_PER_SERVER + 5):
        queue.put("one", str(number))
    queue.put("one", "demanded", first=True)
    queue.start_jobs()
    assert "demanded" in queue.running()
    assert sorted(queue.drop_waiting()) == ["10", "11", "12", "7", "8", "9"]
    while queue.running():
        queue.done(ended.get(timeout=90))
