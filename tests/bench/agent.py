"""A contender in a process of its own, which ends in any case."""

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.contender import Orders, Told

__all__ = ["LONGEST", "Agent"]

LONGEST = 90.0
"""Seconds after which it is killed, whatever it is at."""

_ROOT = Path(__file__).parent.parent.parent


class Agent:
    """Starts with its orders, and does one thing after the other."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def __enter__(self) -> Self:
        self._trouble = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.contender"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._trouble,
            text=True,
        )
        # Whatever happens in it, nobody waits for ever.
        self._end = threading.Timer(LONGEST, self._process.kill)
        self._end.start()
        self._say(json.dumps(self._orders))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.cancel()
        self._process.kill()
        self._process.communicate()
        self._trouble.close()

    def wait(self) -> None:
        """Wait until it is ready."""
        assert self._hear() == "ready"

    def go_on(self) -> None:
        """Have it do the next thing."""
        self._say("")

    def told(self) -> Told:
        """Return what it tells at its end."""
        told: Told = json.loads(self._hear())
        return told

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            self._trouble.seek(0)
            raise AssertionError(f"an agent ended without a word: {self._trouble.read()}")
        return line
