"""The processes of the demo: each ends in order, and all end with the demo."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from refresher.common.secret import mask

__all__ = ["Process", "environment"]

_PR_SET_PDEATHSIG: Final = 1
_END_TIMEOUT: Final = 10.0
_ORDERLY: Final = (0, -signal.SIGTERM)
_MAX_READ: Final = 65536
_OF_THE_USER: Final = re.compile("^REFRESHER_|_PROXY$", re.IGNORECASE)
"""Environment variables that no process of the demo may see."""


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a process: it keeps its files in ``root``, and uses none of the user's."""
    kept = {key: value for key, value in os.environ.items() if not _OF_THE_USER.search(key)}
    # HOME stays: pip install --user installs packages there.
    return kept | {
        "XDG_CONFIG_HOME": str(root / "config"),
        "XDG_STATE_HOME": str(root / "home"),
        "REFRESHER_STATE_DIR": str(root / "state"),
        "REFRESHER_SPILL_DIR": str(root / "spill"),
    }


class Process(subprocess.Popen[bytes]):
    """One process, ``python -m`` with ``arguments``: the lines of its stdout, and its end.

    ``role`` is its name in messages. Its files and its stderr are in ``root``.
    """

    stdout: IO[bytes]

    def __init__(self, role: str, arguments: Sequence[str], *, root: Path) -> None:
        self.role = role
        self._partial = b""
        self._errors = root / f"{role.replace(' ', '-')}.err"
        with self._errors.open("wb") as errors:
            super().__init__(
                [sys.executable, "-m", *arguments],
                # Python imports from here first, and a directory of the user could hold an mcp.py.
                cwd=root,
                env=environment(root),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        os.set_blocking(self.stdout.fileno(), False)

    def lines(self) -> list[str]:
        """Return the complete lines since the last call, without waiting."""
        data = self._partial
        with suppress(BlockingIOError):
            while chunk := os.read(self.stdout.fileno(), _MAX_READ):
                data += chunk
        *lines, self._partial = data.split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def unexpected_end(self) -> str | None:
        """Return a message about its unexpected end; ``None`` while the process runs."""
        if (code := self.poll()) is None:
            return None
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}{self.last_error_line()}"
        return f"{self.role} ended unexpectedly ({how})"

    def last_error_line(self) -> str:
        """Return the last line of its stderr, for the end of a sentence."""
        lines = self._errors.read_text("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f": {mask(last)}" if last else ""

    def finish(self) -> str | None:
        """End the process within ten seconds; return a message if it does not end normally."""
        if self.poll() is not None:
            return None
        self.terminate()
        try:
            code = self.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            return f"{self.role} did not end in time and was killed"
        return None if code in _ORDERLY else f"{self.role} failed at its end (exit code {code}{self.last_error_line()})"


def _end_with_parent() -> Callable[[], None] | None:
    """Return a function for a new process that makes it end with its parent; ``None`` unless this is Linux."""
    if sys.platform != "linux":
        return None
    # Loaded before the fork, because little is safe after it.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent ended before the call

    return in_child
