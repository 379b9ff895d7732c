"""The benchmarks: their rows are complete, and each way to show them shows the same rows."""

import importlib
import json
from pathlib import Path

import msgspec
import pytest

from tests.bench import __main__ as bench
from tests.bench import picture, report
from tests.bench.measuring import Figure, Results
from tests.bench.rows import IN_README, ROWS, questions
from tests.support.documents import DOCUMENTS

MEASURED = Figure([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])
MISSING = ROWS[-1].key


def results(*, quick: bool = False) -> Results:
    """Return results with a figure for each row but one."""
    figures = {row.key: MEASURED for row in ROWS if row.key != MISSING}
    made = Results(machine="2 cores", date="2026-01-01", load=[0.1, 0.2], quick=quick, figures=figures)
    made.missing = {MISSING: "no such server"}
    return made


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> str:
    """Return what the command prints about ``results``."""
    kept = tmp_path / "results.json"
    kept.write_bytes(msgspec.json.encode(results()))
    monkeypatch.setattr(bench, "_SAVED", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--read", str(kept), *options])
    bench.main()
    return capsys.readouterr().out


def test_each_row_has_a_counterpart_a_unit_and_a_goal() -> None:
    """If it failed, a figure would be shown with nothing to compare it with."""
    assert len({row.key for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.what, row.key
        assert row.peer, row.key
        assert row.unit, row.key
        assert row.goal.limit >= 0, row.key
        assert ("{}" in row.what) == bool(row.number), row.key


@pytest.mark.parametrize("question", questions())
def test_a_module_measures_the_rows_of_each_question(question: str) -> None:
    """If it failed, rows would have no figure, and no word about the reason but an error."""
    assert callable(importlib.import_module(f"tests.bench.{question}").measure)


def test_json_has_the_rows_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If it failed, a program would read other rows than a person, or no reason for a row without a figure."""
    table = shown(capsys, monkeypatch, tmp_path).splitlines()
    (heading,) = (number for number, line in enumerate(table) if line.startswith("MEASURED"))
    rows = json.loads(shown(capsys, monkeypatch, tmp_path, "--json"))["rows"]
    assert [row["key"] for row in rows] == [row.key for row in ROWS]
    for row, line in zip(rows, table[heading + 1 :], strict=False):
        assert line.startswith(row["what"])
        assert ("no such server" in line) == (row.get("missing") == "no such server") == (row["key"] == MISSING)
        assert ("MISSED" in line) == (row.get("goal_met") is False)


@pytest.mark.parametrize(
    ("key", "refresher", "missed"),
    [
        ("rotation.floor", 2.9, False),
        ("rotation.floor", 3.1, True),
        ("throughput.forced", 0.6, False),
        ("throughput.forced", 0.4, True),
        ("rotation.syncs", 7.0, False),
        ("rotation.syncs", 8.0, True),
    ],
)
def test_a_missed_goal_is_marked(key: str, refresher: float, missed: bool) -> None:
    """If it failed, a slow refresher would look as fast as promised."""
    made = Results(machine="", date="", load=[], quick=False, figures={key: Figure([refresher], [1.0])})
    assert report.as_table(made).rstrip().endswith("MISSED") == missed


def test_the_table_of_the_readme_has_at_most_ten_lines_and_the_rows_it_claims() -> None:
    """If it failed, the README would show figures that ``tests/run --bench`` does not measure."""
    lines = report.as_markdown(results()).splitlines()
    titles = [report.title(row, quick=False) for key in IN_README for row in ROWS if row.key == key]
    assert len(lines) <= 10
    assert len(titles) == len(IN_README)
    assert _first_cells(lines[2:]) == titles
    readme = DOCUMENTS["README.md"].splitlines()
    end = lines[0].partition(" | ")[2]
    for number, line in enumerate(readme):
        if line.endswith(end):
            assert _first_cells(readme[number + 2 : number + len(lines)]) == titles


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    """If it failed, a run of ten minutes would end without its picture."""
    made = results()
    made.curves = {name: {10: MEASURED, 1000: MEASURED} for name in picture.CURVES}
    picture.draw(made, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def _first_cells(lines: list[str]) -> list[str]:
    return [line.removeprefix("| ").partition(" | ")[0] for line in lines]
