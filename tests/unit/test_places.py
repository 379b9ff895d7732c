"""Who may rotate at the same time."""

import threading
from collections import Counter

import pytest

from refresher.places import AT_ONCE, AT_ONE_SERVER, run_all
from tests.support.command import wait_until


def test_no_more_than_promised_run_at_once_and_a_hanging_server_delays_nobody_else() -> None:
    """If it failed, one authorization server that hangs would hold up the grants of all the others."""
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
            release.wait(30)
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
    runner.join(30)
    assert results == [[job for _, job in jobs]], "results do not stand in the order of the jobs"
    assert most["hanging"] == AT_ONE_SERVER
    assert most["all"] <= AT_ONCE


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_a_system_without_threads_still_does_every_job(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    """If it failed, a limit on processes would end a run while rotations are under way, and a signal kill them."""
    # A fake: the limit itself would hit the test runner too.
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


def test_a_stop_lets_every_job_say_so_itself() -> None:
    """If it failed, Ctrl-C would leave names without a result, or wait for a queue that never moves."""
    assert run_all([("one", number) for number in range(500)], lambda job: job, stopping=lambda: True) == [*range(500)]
