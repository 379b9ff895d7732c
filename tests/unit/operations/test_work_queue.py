"""Who may rotate at the same time."""

import threading
import time
from collections import Counter
from queue import SimpleQueue

import pytest

from refresher.operations import work_queue as places_module
from refresher.operations.budget import BURST, RATE, Budget
from refresher.operations.work_queue import AT_ONCE, AT_ONE_SERVER, Finished, Places, run_all
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


def test_a_start_with_many_due_grants_is_spread_and_a_rest_earns_a_burst() -> None:
    """If it failed, a restart with a thousand grants would be taken for an attack by their server."""
    budget = Budget(100.0)
    now = 100.0
    asked: list[float] = []
    while len(asked) < BURST + 100:
        now = max(now, budget.opens_at(now))
        budget.take(now)
        asked.append(now)
    assert asked[BURST - 1] == 100.0
    assert asked[-1] == pytest.approx(100.0 + 100 / RATE)
    assert budget.opens_at(now + 3600) == now + 3600
    budget.hold(now + 7200)
    assert budget.opens_at(now + 3600) == now + 7200


def test_a_server_beyond_its_budget_keeps_nobody_else_waiting_and_all_get_their_turn() -> None:
    """If it failed, one server's many grants would delay the others', or some would never be rotated."""
    ended: SimpleQueue[Finished[str, str]] = SimpleQueue()
    places: Places[str, str] = Places(lambda job: job, ended.put)
    for number in range(BURST + 5):
        places.join("many", f"many-{number}")
    places.join("held", "held-0")
    places.hold("held", time.monotonic() + 3600)
    done: list[str] = []

    def turn() -> bool:
        places.begin()
        while not ended.empty():
            finished = ended.get()
            places.leave(finished)
            done.append(finished.job)
        return len(done) == BURST + 6

    wait_until(lambda: turn() or len(done) >= BURST, "the burst is over")
    places.join("other", "other-0")
    wait_until(lambda: turn() or "other-0" in done, "the other server has its turn")
    assert len(done) < BURST + 6, "there is no budget"
    wait_until(turn, "all have had their turn")
    assert "held-0" not in done
    assert sorted(done) == sorted([*(f"many-{number}" for number in range(BURST + 5)), "other-0"])


def test_a_server_that_was_slow_has_one_place_until_it_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a few servers that hang would take all places from the rest."""
    monkeypatch.setattr(places_module, "_SLOW", 0.0)
    ended: SimpleQueue[Finished[int, int]] = SimpleQueue()
    release = threading.Semaphore(0)
    places: Places[int, int] = Places(lambda job: (release.acquire(timeout=30) and job) or job, ended.put)
    for number in range(20):
        places.join("slow", number)
    places.begin()
    assert len(places.working()) == AT_ONE_SERVER
    for _ in range(AT_ONE_SERVER):
        release.release()
        places.leave(ended.get(timeout=30))
        places.begin()
    assert len(places.working()) == 1
    monkeypatch.setattr(places_module, "_SLOW", 1e9)
    release.release()
    places.leave(ended.get(timeout=30))
    places.begin()
    assert len(places.working()) == AT_ONE_SERVER, "it was quick, and is not trusted again"
    assert places.forget_waiting()
    while places.working():
        release.release()
        places.leave(ended.get(timeout=30))


def test_what_is_put_first_is_begun_first() -> None:
    """If it failed, a demand would wait behind a thousand rotations that nobody waits for."""
    ended: SimpleQueue[Finished[str, str]] = SimpleQueue()
    places: Places[str, str] = Places(lambda job: job, ended.put)
    for number in range(AT_ONE_SERVER + 5):
        places.join("one", str(number))
    places.join("one", "demanded", first=True)
    places.begin()
    assert "demanded" in places.working()
    assert sorted(places.forget_waiting()) == ["10", "11", "12", "7", "8", "9"]
    while places.working():
        places.leave(ended.get(timeout=30))
