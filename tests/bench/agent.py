"""An agent program in a process of its own, which is killed at the end."""

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.agent_program import Plan, Report

__all__ = ["LONGEST", "Agent"]

LONGEST = 180.0
"""Seconds after which the process is killed."""

_ROOT = Path(__file__).parent.parent.parent


class Agent:
    """Starts the program with its plan; each ``continue_`` starts its next step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.agent_program"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        # The process ends even if the program hangs.
        self._timer = threading.Timer(LONGEST, self._process.kill)
        self._timer.start()
        self._write(json.dumps(self._plan))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def wait(self) -> None:
        """Wait until the program is ready."""
        assert self._read() == "ready"

    def continue_(self) -> None:
        """Start the next step."""
        self._write("")

    def report(self) -> Report:
        """Return the report that the program prints at its end."""
        report: Report = json.loads(self._read())
        return report

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            self._stderr.seek(0)
            raise AssertionError(f"an agent ended without a report: {self._stderr.read()}")
        return line
