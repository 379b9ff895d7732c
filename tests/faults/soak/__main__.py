"""Run a soak: ``python -m tests.faults.soak MINUTES [--seed N]``."""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.faults.soak import report
from tests.faults.soak.soak import Stage
from tests.support import oidc

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Return 0 where everything held, 1 where something did not, 130 where it was ended before that was known."""
    parser = argparse.ArgumentParser(prog="tests/run --soak", description="Soak refresher in faults, and count.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    asked = parser.parse_args(arguments)
    if (missing := oidc.missing()) is not None:
        sys.stderr.write(f"{missing}\n")
        return 2
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    sys.stderr.write(f"a soak of {asked.minutes:g} minutes with --seed {asked.seed}; Ctrl-C ends it early\n")
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as root:
        stage = Stage(Path(root), asked.seed, asked.minutes * 60, ending, telling=True)
        survived = stage.play()
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    sys.stdout.write(report.screen(survived) + "\n")
    if survived.violations:
        return 1
    return 130 if ending.is_set() else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
