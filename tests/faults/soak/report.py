"""What a soak survived, on one screen for a person."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from tests.faults.soak.journal import Violation, Wait

__all__ = ["Survived", "progress", "screen"]

_TRACES: Final = 3
_LONG: Final = 10.0


class Survived(NamedTuple):
    """The figures of a soak."""

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
    """Seconds until everything was well after the last fault; ``None`` where nobody waited for it."""


def screen(survived: Survived) -> str:
    """Return the report."""
    worst = survived.worst
    lines = [
        f"{survived.seconds / 60:.1f} minutes, seed {survived.seed}",
        f"exchanges     {survived.exchanges}, of them {survived.rotations} rotations",
        f"people        {_counted(survived.acts)}",
        f"agents        {survived.calls} calls, {survived.failed_calls.total()} failed{_why(survived.failed_calls)}",
        f"faults        {survived.faults.total()}",
        *_columns(survived.faults),
        f"losses        {survived.losses.total()} by nature{_why(survived.losses)}",
        f"unaccounted   {sum(violation.what.startswith('UNACCOUNTED') for violation in survived.violations)}",
        f"violations    {len(survived.violations)}",
        f"worst wait    {worst.seconds:.1f} s without a live token, and no reason told{f' ({worst.name})' if worst.name else ''}",
        f"daemons       {survived.memory / 1024:.0f} MiB and {survived.files} files at most",
        "calm          " + ("not waited for" if survived.calmed is None else f"all well after {survived.calmed:.1f} s"),
        *(f"left out      {missing}" for missing in survived.missing),
    ]
    if worst.seconds > _LONG:
        lines += ["", f"the worst wait, of {worst.name}:", *worst.trace]
    for violation in survived.violations[:_TRACES]:
        lines += ["", f"VIOLATION {violation.name}: {violation.what}", *violation.trace]
    lines += [f"VIOLATION {violation.name}: {violation.what}" for violation in survived.violations[_TRACES:]]
    return "\n".join(lines)


def progress(seconds: float, exchanges: int, calls: int, faults: int, losses: int, violations: int) -> str:
    """Return one line about how it goes."""
    return (
        f"{seconds:6.0f} s  {exchanges} exchanges  {calls} calls  {faults} faults  {losses} lost by nature  "
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
