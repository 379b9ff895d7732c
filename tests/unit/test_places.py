"""Who may rotate at the same time."""

import threading
from collections import Counter

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


def test_a_stop_lets_every_job_say_so_itself() -> None:
    """If it failed, Ctrl-C would leave names without a result, or wait for a queue that never moves."""
    assert run_all([("one", number) for number in range(500)], lambda job: job, stopping=lambda: True) == [*range(500)]
