"""The fuzz of a soak: one round after the other, each with new grants and a seed of its own."""

import sys
import threading
import time
from collections import Counter
from typing import Final

from tests.faults.fuzz.fuzz import Fuzz, Round

__all__ = ["run", "text"]

_ROUND: Final = 60.0
_MOST: Final = (6_000, 40_000)
"""Files of each agent; with the second number there are more than refresher lists."""


def run(seed: int, seconds: float, ending: threading.Event) -> list[Round]:
    """Run rounds for ``seconds``, or until ``ending``."""
    rounds: list[Round] = []
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and not ending.is_set():
        number = len(rounds)
        fuzz = Fuzz(f"{seed}/{number}", shared=number % 2 == 1, most=_MOST[number // 2 % 2])
        rounds.append(fuzz.run(min(left, _ROUND), ending))
        for violation in rounds[-1].violations:
            sys.stderr.write(f"\nVIOLATION in round {number} of the fuzz: {violation}\n")
    return rounds


def text(rounds: list[Round]) -> str:
    """Return the figures of the report."""
    operations = sum((each.operations for each in rounds), Counter[str]())
    done = sum(count for name, count in operations.items() if name.endswith(" done"))
    doubts = sum(each.doubts for each in rounds)
    exchanges = sum(each.exchanges for each in rounds)
    return "\n".join(
        (
            f"fuzz rounds    {len(rounds)}, with {exchanges} exchanges and {doubts} grants in doubt",
            f"fuzz files     {operations.total()} operations of agents, {done} of them succeeded",
            f"fuzz problems  {sum(len(each.violations) for each in rounds)}",
        )
    )
