"""How the tests are shared by several processes."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.documents import ROOT
from tests.support.scheduler import BY_SERVER, LONG, TOGETHER, Scheduler, unit_of


class Worker:
    """A process that gets tests."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.got: list[str] = []

    def send_runtest_some(self, indexes: list[int]) -> None:
        self.got += [NAMES[index] for index in indexes]

    def shutdown(self) -> None:
        self.shutting_down = True


NAMES = [
    "tests/system/test_agents.py::test_a[one daemon]",
    "tests/unit/test_x.py::test_x",
    "tests/system/test_reconnecting_counterparts.py::test_b[python 2025 json]",
    "tests/system/test_reconnecting_counterparts.py::test_b[python 2025 sse]",
    "tests/system/test_agents.py::test_a[two daemons and cron]",
    "tests/system/test_reconnecting_counterparts.py::test_c[busy-python 2025 json]",
    "tests/unit/test_x.py::test_y",
]


def test_tests_that_share_something_run_in_one_process() -> None:
    """If it failed, each process would make a machine, a browser and an image of its own, and the tests take longer."""
    option = SimpleNamespace(loadscopereorder=True)
    config: Any = SimpleNamespace(getvalue=lambda _: ["popen"] * 2, option=option)
    scheduler = Scheduler(config)
    workers = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, NAMES)
    scheduler.schedule()
    while scheduler.workqueue:
        worker = min(workers, key=lambda each: len(each.got))
        scheduler.mark_test_complete(worker, NAMES.index(worker.got[-1]))
    assert sorted(workers[0].got + workers[1].got) == sorted(NAMES)
    agents, json = NAMES[0::4], NAMES[2::3]
    for together in (agents, json):
        assert sum(set(together) <= set(worker.got) for worker in workers) == 1, [worker.got for worker in workers]
    assert unit_of(NAMES[2]) != unit_of(NAMES[3])


@pytest.mark.parametrize("name", [*sorted(TOGETHER), *sorted(BY_SERVER), *LONG])
def test_the_schedule_names_tests_that_exist(name: str) -> None:
    """If it failed, a renamed test would start last, or each process would make what its tests share."""
    module, _, function = name.partition("::")
    assert f"def {function}" in (ROOT / module).read_text()
