"""The results as a table for people, as JSON, and as the table of README.md."""

import json
from statistics import median
from typing import Any, Final, NamedTuple

from tests.bench.measuring import Figure, Results, sized
from tests.bench.rows import IN_README, ROWS, Goal, Row

__all__ = ["as_json", "as_markdown", "as_table", "title"]

_HEADINGS: Final = ("MEASURED", "REFRESHER", "BESIDE", "", "RATIO", "SPREAD", "GOAL", "")


class _Summary(NamedTuple):
    """The figure of a row: medians, and the ratios of the rounds to their counterparts."""

    refresher: float
    peer: float
    ratio: float | None
    """``None``, as the next two, if a counterpart is 0."""
    lowest: float | None
    highest: float | None
    goal_met: bool


def title(row: Row, *, quick: bool) -> str:
    """Return what a row measures, with its number of grants or callers."""
    return row.what.format(f"{sized(row.number, quick=quick):,}")


def as_table(results: Results) -> str:
    """Return the table for people, of the rows that were to be measured."""
    lines = [_HEADINGS]
    for row in ROWS:
        name = title(row, quick=results.quick)
        if (figure := results.figures.get(row.key)) is not None:
            summary = _summary(row, figure)
            lines.append(
                (
                    name,
                    _value(summary.refresher, row.unit),
                    _value(summary.peer, row.unit),
                    row.peer,
                    _ratio(summary.ratio),
                    _spread(summary),
                    _goal(row.goal, row.unit),
                    "" if summary.goal_met else "MISSED",
                )
            )
        elif (reason := results.missing.get(row.key)) is not None:
            lines.append((name, "-", "", "", "", "", _goal(row.goal, row.unit), f"not measured: {reason}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    table = ["  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines]
    return "\n".join([f"{_heading(results)}, measured in {results.seconds:.0f} s", "", *table, "", *results.notes])


def as_json(results: Results) -> str:
    """Return the rows of the table and the points of the curves, with the values of all rounds."""
    listed: list[dict[str, Any]] = []
    for row in ROWS:
        said = {
            "key": row.key,
            "what": title(row, quick=results.quick),
            "peer": row.peer,
            "unit": row.unit,
            "goal": row.goal._asdict(),
        }
        if (figure := results.figures.get(row.key)) is not None:
            rounds = {"refresher": figure.refresher, "peer": figure.peer}
            listed.append(said | _summary(row, figure)._asdict() | {"rounds": rounds})
        elif (reason := results.missing.get(row.key)) is not None:
            listed.append(said | {"missing": reason})
    curves = {
        name: [
            {"grants": grants, "refresher": median(figure.refresher), "peer": median(figure.peer)}
            for grants, figure in points.items()
        ]
        for name, points in results.curves.items()
    }
    head = {key: getattr(results, key) for key in ("machine", "date", "load", "seconds", "quick")}
    return json.dumps(head | {"rows": listed, "curves": curves, "notes": results.notes}, indent=2)


def as_markdown(results: Results) -> str:
    """Return the table of README.md."""
    lines = [f"| {_heading(results)} | refresher | beside it | ratio |", "|---|---|---|---|"]
    by_key = {row.key: row for row in ROWS}
    for row in map(by_key.__getitem__, IN_README):
        figure = results.figures.get(row.key)
        cells = ["not measured", "", ""]
        if figure is not None:
            summary = _summary(row, figure)
            peer = f"{_value(summary.peer, row.unit)} ({row.peer})"
            cells = [_value(summary.refresher, row.unit), peer, _ratio(summary.ratio)]
        lines.append(f"| {' | '.join([title(row, quick=results.quick), *cells])} |")
    return "\n".join(lines)


def _heading(results: Results) -> str:
    load = " to ".join(f"{each:.1f}" for each in results.load)
    quick = ", --quick" if results.quick else ""
    return f"{results.machine}, {results.date}, load {load}{quick}"


def _summary(row: Row, figure: Figure) -> _Summary:
    ours, peer = median(figure.refresher), median(figure.peer)
    ratio = lowest = highest = None
    if all(figure.peer):
        ratios = [ours / peer for ours, peer in zip(figure.refresher, figure.peer, strict=True)]
        ratio, lowest, highest = median(ratios), min(ratios), max(ratios)
    value = ours if row.goal.of == "figure" else ratio
    return _Summary(ours, peer, ratio, lowest, highest, value is not None and row.goal.is_met(value))


def _value(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}"


def _number(value: float) -> str:
    """Return three digits."""
    return f"{value:,.{0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2}f}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x" if ratio else "0x"


def _spread(summary: _Summary) -> str:
    if summary.lowest is None or summary.lowest == summary.highest:
        return ""
    return f"{summary.lowest:.2f}-{summary.highest:.2f}"


def _goal(goal: Goal, unit: str) -> str:
    return f"{goal.kind} {goal.limit:g}{'x' if goal.of == 'ratio' else f' {unit}'}"
