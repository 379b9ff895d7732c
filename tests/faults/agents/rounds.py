"""The chaos of a soak: one round after the other, each with new servers and a seed of its own."""

import logging
import sys
import threading
import time
from collections import Counter
from typing import Final

import anyio

from tests.faults.agents.chaos import Chaos, Round

__all__ = ["run", "text"]

_ROUND: Final = 60.0


def run(seed: int, seconds: float, ending: threading.Event) -> list[Round]:
    """Run rounds for ``seconds``, or until ``ending``."""
    logging.getLogger("mcp").setLevel(logging.ERROR)  # a warning for each session whose end a server does not know
    rounds: list[Round] = []
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and not ending.is_set():
        number = len(rounds)
        rounds.append(anyio.run(Chaos(f"{seed}/{number}").run, min(left, _ROUND), ending))
        for violation in rounds[-1].violations:
            sys.stderr.write(f"\nVIOLATION in the chaos (CHAOS_SEED={seed}/{number}): {violation}\n")
    return rounds


def text(rounds: list[Round]) -> str:
    """Return the figures of the report."""
    outcomes = sum((each.outcomes for each in rounds), Counter[str]())
    faults = sum((each.faults for each in rounds), Counter[str]())
    ends = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    worst = max((each.worst for each in rounds), default=0.0)
    calm = max((each.calm for each in rounds), default=0.0)
    return "\n".join(
        (
            f"chaos rounds    {len(rounds)}, with {faults.total()} faults and {sum(each.heard for each in rounds)} notifications",
            f"chaos calls     {outcomes.total()} ({ends})",
            f"chaos waits     {worst:.1f} s for the longest call, {calm:.1f} s until all hear after the faults",
            f"chaos problems  {sum(len(each.violations) for each in rounds)}",
        )
    )
