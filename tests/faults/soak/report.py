"""The report of a soak test, on one screen."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from tests.faults.soak.journal import Violation, Wait

__all__ = ["Result", "progress", "text"]

_TRACES: Final = 3
_LONG: Final = 10.0


class Result(NamedTuple):
    """The figures of a soak test."""

    seed: int
    seconds: float
    exchanges: int
    rotations: int
    acts: Counter[str]
    calls: int
    failed_calls: Counter[str]
    faults: Counter[str]
    losses: Counter[str]
    worst: Wait
    memory: int
    """KiB, of the largest daemon."""
    files: int
    violations: list[Violation]
    missing: list[str]
    calmed: float | None
    """Seconds from the last fault until every grant was valid; ``None`` if the soak test did not wait for it."""


def text(result: Result) -> str:
    """Return the report."""
    worst = result.worst
    lines = [
        f"{result.seconds / 60:.1f} minutes, seed {result.seed}",
        f"exchanges     {result.exchanges}, of them {result.rotations} rotations",
        f"people        {_counted(result.acts)}",
        f"agents        {result.calls} calls, {result.failed_calls.total()} failed{_why(result.failed_calls)}",
        f"faults        {result.faults.total()}",
        *_columns(result.faults),
        f"losses        {result.losses.total()} by faults{_why(result.losses)}",
        f"unaccounted   {sum(violation.what.startswith('UNACCOUNTED') for violation in result.violations)}",
        f"violations    {len(result.violations)}",
        f"worst wait    {worst.seconds:.1f} s without a live token while published as active{f' ({worst.name})' if worst.name else ''}",
        f"daemons       {result.memory / 1024:.0f} MiB and {result.files} files at most",
        "calm          " + ("not checked" if result.calmed is None else f"all valid after {result.calmed:.1f} s"),
        *(f"left out      {missing}" for missing in result.missing),
    ]
    if worst.seconds > _LONG:
        lines += ["", f"the worst wait, of {worst.name}:", *worst.trace]
    for violation in result.violations[:_TRACES]:
        lines += ["", f"VIOLATION {violation.name}: {violation.what}", *violation.trace]
    lines += [f"VIOLATION {violation.name}: {violation.what}" for violation in result.violations[_TRACES:]]
    return "\n".join(lines)


def progress(seconds: float, exchanges: int, calls: int, faults: int, losses: int, violations: int) -> str:
    """Return one line of progress."""
    return (
        f"{seconds:6.0f} s  {exchanges} exchanges  {calls} calls  {faults} faults  {losses} lost by faults  "
        f"{violations} violations"
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common()) or "nothing"


def _why(counts: Counter[str]) -> str:
    return f" ({_counted(counts)})" if counts else ""


def _columns(counts: Counter[str]) -> Iterable[str]:
    cells = [f"{count:5} {what}" for what, count in counts.most_common()]
    half = (len(cells) + 1) // 2
    for left, right in zip(cells[:half], [*cells[half:], ""], strict=False):
        yield f"  {left:42}{right}".rstrip()
