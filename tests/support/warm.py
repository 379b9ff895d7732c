"""Processes of Python modules that start by fork, after their imports."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["AVAILABLE", "WarmProcess", "close", "start", "stub"]

AVAILABLE: Final = sys.platform == "linux"
"""Whether this system lets a process adopt its orphaned descendants."""

_PR_SET_CHILD_SUBREAPER: Final = 36
_ROOT: Final = Path(__file__).parent.parent.parent
_STARTING: Final = threading.Lock()


class WarmProcess(subprocess.Popen[str]):
    """As ``Popen([sys.executable, "-m", *module_and_arguments], text=True)``; ``stopped``: stopped before its first line.

    It is a child of this process with its own id, signals and exit code, in a session without a terminal.
    """

    def __init__(self, module_and_arguments: Sequence[str], *, stopped: bool = False, **options: Any) -> None:
        self._stopped = stopped
        super().__init__(module_and_arguments, text=True, **options)

    # Popen makes the pipes and reads them; this replaces its fork and exec alone.
    def _execute_child(self, args: list[str], *details: Any) -> None:
        _, _, _, _, cwd, env, _, _, _, *pipes_and_more = details
        pipes = pipes_and_more[:6]
        stdin, _, _, stdout, _, stderr = pipes
        request = {
            "module": args[0],
            "arguments": args[1:],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "stopped": self._stopped,
            "waits": False,
        }
        streams = [given if given != -1 else own for own, given in enumerate((stdin, stdout, stderr))]
        with _STARTING:  # threads of a test that start processes share one interpreter
            interpreter = _interpreter()
        self.pid = interpreter.fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Interpreter:
    """A process of ``tests.servers.warm``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.warm", _socket()],
            env={"PATH": os.environ["PATH"]},  # without a locale, as for the commands of the tests
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the warm interpreter did not start"

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        with self._lock, socket.socket(socket.AF_UNIX) as connection:
            connection.connect(_socket())
            # The interpreter forks twice, and the kernel gives the orphan to this process, which can then wait for it.
            _adopt_orphans(True)
            try:
                socket.send_fds(connection, [json.dumps(request).encode()], streams)
                pid, _ = connection.makefile()
                return int(pid)
            finally:
                _adopt_orphans(False)

    def close(self) -> None:
        self._process.communicate()  # it ends when its stdin closes


@cache
def _interpreter() -> _Interpreter:
    return _Interpreter()


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="warm-")


def _socket() -> str:
    return str(Path(_place().name, "socket"))


def start() -> None:
    """Start the interpreter for the commands of ``stub``; without it they start a new one each time."""
    if AVAILABLE:
        with _STARTING:
            _interpreter()


def stub(module: str, *arguments: str) -> list[str]:
    """Return a command for other programs to start, in place of ``python -m``."""
    return [sys.executable, "-I", "-S", str(_ROOT / "tests/servers/stub.py"), _socket(), module, *arguments]


def close() -> None:
    """End the interpreter, if there is one."""
    if _interpreter.cache_info().currsize:
        _interpreter().close()
        _interpreter.cache_clear()
    if _place.cache_info().currsize:
        _place().cleanup()
        _place.cache_clear()


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)
