"""A server in a separate process, which prints its address and ends when its stdin is closed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.warm import AVAILABLE, WarmProcess

__all__ = ["Served"]

_ROOT = Path(__file__).parent.parent.parent


class Served:
    """Started by ``command``, it prints one line of JSON when it is ready."""

    def __init__(self, *command: str, **environment: str) -> None:
        options: dict[str, Any] = {
            "env": {**os.environ, **environment},
            "cwd": _ROOT,
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
        }
        self._process: subprocess.Popen[str]
        if AVAILABLE and command[:2] == (sys.executable, "-m"):
            self._process = WarmProcess(command[2:], **options)
        else:
            # In its own session: Ctrl-C ends the tests, which end the server.
            self._process = subprocess.Popen(command, text=True, start_new_session=True, **options)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server did not start: {command}"
        self.said: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        """Kill the server, whose end is still to be awaited."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends by itself
        self._process.stdout.close()
        self._process.wait(60)
