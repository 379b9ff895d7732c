"""The length of the moments in which a kill or a power cut can lose a login; no absolute time is asserted."""

import time
from pathlib import Path
from statistics import median

import pytest

from refresher.grants.record import Record, encode
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import files
from refresher.storage.journal import Attempt
from refresher.storage.publishing import Publisher
from tests.bench.conftest import Compare
from tests.support.fake_state import directories, put
from tests.support.samples import grant
from tests.support.token_server import TokenServer

ROTATIONS = 60


def test_an_answer_is_on_the_disk_after_the_time_of_a_few_durable_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    """If it failed, slow code between the answer and the disk would make it more likely that a crash loses a login (I2)."""
    made = directories(tmp_path)
    spent: list[float] = []
    saved: list[float] = []
    baselines: list[float] = []
    persist = Attempt.persist

    def timed(attempt: Attempt, record: Record, *, until_saved: bool) -> None:
        persist(attempt, record, until_saved=until_saved)
        saved.append(time.perf_counter())

    monkeypatch.setattr(Attempt, "persist", timed)
    terms = Terms(ca_file=None, stopping=lambda: False)
    with TokenServer(lambda _: 3600, hold=lambda: spent.append(time.perf_counter())) as server:
        record = put(made.record("linear"), grant(token_endpoint=server.token_endpoint)).record
        assert record is not None
        for number in range(ROTATIONS):
            result = rotate(Publisher(made), Order(name="linear", seen=record.generation + number, force=True), terms)
            assert result is not None
            assert result.outcome == "rotated", result.detail
            baselines.append(_durable_replace(made.grants / "baseline.json", encode(record)[0]))
    windows = [after - before for before, after in zip(spent, saved, strict=True)]
    what = (
        f"from the server's answer to our disk ({1000 * median(windows):.1f} ms, the longest {1000 * max(windows):.1f} "
        f"ms), against a durable replacement ({1000 * median(baselines):.1f} ms)"
    )
    compare(what, median(windows) / median(baselines), at_most=10)


def _durable_replace(path: Path, data: bytes) -> float:
    began = time.perf_counter()
    temporary = path.with_name(f"{path.name}.new")
    files.durable_create(temporary, data)
    temporary.rename(path)
    files.sync_directory(path.parent)
    return time.perf_counter() - began
