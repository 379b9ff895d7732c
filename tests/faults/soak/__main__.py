"""Run a soak: ``python -m tests.faults.soak MINUTES [--seed N]``."""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.faults.agents import bridge
from tests.faults.agents import rounds as chaos
from tests.faults.fuzz import fuzz, rounds
from tests.faults.soak import cluster, gateway, report
from tests.faults.soak.soak import Soak
from tests.support import oidc, postgres, warm

__all__ = ["main"]

_LEAST_FOR_DATABASE = 20.0
"""Seconds; the suite has a short chaos around a database of its own (``tests.faults.test_database_runs``)."""


def main(arguments: list[str]) -> int:
    """Return 0 without violations, 1 with violations, 130 if a signal ended it before the last checks."""
    parser = argparse.ArgumentParser(
        prog="tests/run --soak", description="Run refresher with random faults, and count violations."
    )
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args(arguments)
    if (missing := oidc.missing()) is not None:
        sys.stderr.write(f"{missing}\n")
        return 2
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    third = options.minutes * 20
    without = fuzz.missing()
    sys.stderr.write(f"a soak of {options.minutes:g} minutes with --seed {options.seed}; Ctrl-C ends it early\n")
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as root:
        result = Soak(Path(root), options.seed, third * (2 if without else 1), ending, verbose=True).run()
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    sys.stdout.write(report.text(result) + "\n")
    fuzzed = [] if without else rounds.run(options.seed, third, ending)
    sys.stdout.write((f"left out      the fuzz: {without}" if without else rounds.text(fuzzed)) + "\n")
    agents = chaos.run(options.seed, third * 0.6, ending)
    sys.stdout.write(chaos.text(agents) + "\n")
    bridged = bridge.run(str(options.seed), third * 0.2, ending)
    sys.stdout.write(bridge.text(bridged) + "\n")
    of_gateway = gateway.run(options.seed, third * 0.2, ending)
    in_database = []
    if third >= _LEAST_FOR_DATABASE and postgres.find_binaries() is not None:
        chaos_there = cluster.Chaos(options.seed, third * 0.2, grants=200, refreshers=4, hasten=True)
        sys.stdout.write(cluster.text(found := chaos_there.run()) + "\n")
        in_database = found.violations
    warm.close()
    in_rounds = [each.violations for each in fuzzed] + [each.violations for each in agents]
    if result.violations or bridged.violations or of_gateway or in_database or any(in_rounds):
        return 1
    return 130 if ending.is_set() else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
