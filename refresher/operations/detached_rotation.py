"""A rotation in a process of its own session, which completes it whatever happens to the command that waits for it.

Programs kill a command that is slow: codex kills a helper and its process group after 10 s. If the command itself
exchanged the refresh token, that would lose the answer.
"""

import json
import logging
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from refresher.common.errors import NotInTime
from refresher.operations.result import Result

if TYPE_CHECKING:
    import subprocess

__all__ = ["DetachedRotation", "report"]

log = logging.getLogger(__name__)

_PIECE: Final = 64 * 1024
_TIME_TO_END: Final = 3.0
"""Seconds that a command waits for the end of the process at most, once it has its token: for its last log lines."""

# As "python -m refresher" from any directory, also where the package is not installed. With -P, Python imports nothing
# from the current directory, which may belong to an agent.
_START: Final = "import sys; sys.path.append(sys.argv.pop(1)); from refresher.__main__ import main; main()"
_ROOT: Final = str(Path(__file__).parent.parent.parent)


class DetachedRotation:
    """Starts ``refresher ARGUMENTS``, a command that calls ``report``, and takes its result and its log lines.

    It shares no terminal and no descriptor with this process but two pipes that this process alone reads: a program
    that reads the output of a killed command does not wait for the rotation. If nobody reads the pipes any more, the
    process completes its rotation all the same. ``wait``: the seconds that this process has.
    """

    def __init__(self, name: str, arguments: Sequence[str], wait: float) -> None:
        self._ends: Final = time.monotonic() + wait
        self._name: Final = name
        self._arguments: Final = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._result: Result | None = None
        self._problem: str | None = None
        self._output = b""
        self._lines = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Reaped here, where possible: in a container, process 1 may reap no process.
        now = time.monotonic()
        ends = min(now + _TIME_TO_END, max(self._ends, now + _TIME_TO_END / 6)) if kind is None else now
        while self._take(max(ends - time.monotonic(), 0.0)):
            if time.monotonic() >= ends:
                break

    def start(self, lock_wait: float) -> None:
        """Start the process. Its last argument says until when it waits for the lock, by the clock of all processes.

        If it cannot be started, ``result`` says so.
        """
        import subprocess  # few calls rotate

        self._result, self._output, self._lines, self._problem = None, b"", b"", None
        command = (sys.executable, "-P", "-c", _START, _ROOT, *self._arguments, f"{time.monotonic() + lock_wait:.1f}")
        try:
            # The same directory and environment: they are part of the configuration.
            self._process = subprocess.Popen(  # noqa: S603  this program
                command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._problem = (
                f"cannot start the process that refreshes: {(error.strerror or '').lower()}; nothing was changed, try "
                "again later"
            )
            return
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)

    @property
    def is_running(self) -> bool:
        """Whether a process was started whose result was not taken yet."""
        return self._result is None and (self._process is not None or self._problem is not None)

    def result(self, timeout: float) -> Result | None:
        """Return the result if it comes within ``timeout`` seconds, else ``None``.

        Raises ``NotInTime`` if the process could not be started, or has ended without one.
        """
        if self._problem is not None:
            raise NotInTime(f"{self._name}: {self._problem}")
        alive = self._take(timeout)
        if self._result is None and not alive:
            raise NotInTime(
                f"{self._name}: the process that refreshes has ended without a result; "
                f"'refresher run-once {self._name}' shows whether something is wrong"
            )
        return self._result

    def _take(self, timeout: float) -> bool:
        """Read what the process has written, and wait up to ``timeout`` seconds for more; return whether it runs."""
        process = self._process
        if process is None or process.stdout is None or process.stderr is None:
            return False
        streams = [stream for stream in (process.stdout, process.stderr) if not stream.closed]
        for stream in select.select(streams, [], [], timeout)[0]:
            data = _read(stream.fileno())
            if data is None:
                stream.close()
            elif stream is process.stdout:
                *complete, self._output = (self._output + data).split(b"\n")
                for line in complete:
                    # Another line is of something else in the process, such as a sitecustomize.
                    with suppress(msgspec.MsgspecError):
                        self._result = msgspec.json.decode(line, type=Result)
            else:
                *complete, self._lines = (self._lines + data).split(b"\n")
                for line in complete:
                    _log(line)
        if process.stdout.closed and process.stderr.closed:
            with suppress(Exception):  # TimeoutExpired, of a module that is imported late
                process.wait(_TIME_TO_END / 6)  # it ends: Python has closed its descriptors
            self._process = None
        return self._process is not None


def report(result: Result | None, name: str) -> None:
    """In the process: write the result of the rotation, ``None`` if there was nothing to do any more."""
    # A failure to write means that nobody waits.
    with suppress(OSError):
        os.write(1, msgspec.json.encode(result or Result(name, "not_due", None, "nothing to do")) + b"\n")


def _read(descriptor: int) -> bytes | None:
    """Read what is there; return ``None`` at the end."""
    data = b""
    with suppress(BlockingIOError):
        while piece := os.read(descriptor, _PIECE):
            data += piece
        return data or None
    return data


def _log(line: bytes) -> None:
    """Log a line of the process, which is a JSON object of ``common.logs``, as a line of this one."""
    with suppress(ValueError, KeyError, TypeError):
        fields = json.loads(line)
        level = logging.getLevelNamesMapping()[fields["level"].upper()]
        log.log(level, "%s", fields["message"])
