"""The processes of the demo: in sessions of their own, ended in order, and never left behind."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, cast

from refresher.common.secret import mask

__all__ = ["Process", "environment"]

_PR_SET_PDEATHSIG: Final = 1
_LONGEST_END: Final = 10.0
_ORDERLY: Final = (0, -signal.SIGTERM)
_LARGEST_READ: Final = 65536


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a process, which keeps all its files in ``root`` and none of the user's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("REFRESHER_") and not name.upper().endswith("_PROXY")
    }
    # HOME stays: pip install --user installs packages there.
    return kept | {
        "XDG_CONFIG_HOME": str(root / "config"),
        "XDG_STATE_HOME": str(root / "home"),
        "REFRESHER_STATE_DIR": str(root / "state"),
        "REFRESHER_SPILL_DIR": str(root / "spill"),
    }


class Process:
    """One process, ``python -m`` with ``arguments``: the lines of its stdout, and its end.

    ``role`` is its name in messages. Its files and its stderr are in ``root``.
    """

    def __init__(self, role: str, arguments: Sequence[str], *, root: Path) -> None:
        self.role = role
        # The demo's own programs end with their stdin.
        self._by_signal = arguments[0] == "refresher"
        self._partial = b""
        self._errors = root / f"{role.replace(' ', '-')}.err"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  our own programs
                [sys.executable, "-m", *arguments],
                # Python imports from here first, and a directory of the user could hold an mcp.py.
                cwd=root,
                env=environment(root),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_with_its_parent(),
            )
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        os.set_blocking(self._stdout.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; ``None`` while the process runs."""
        return self._process.poll()

    def lines(self) -> list[str]:
        """Return the complete lines since the last call, without waiting."""
        said = self._partial
        with suppress(BlockingIOError):
            while chunk := os.read(self._stdout.fileno(), _LARGEST_READ):
                said += chunk
        *whole, self._partial = said.split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def death(self) -> str | None:
        """Return a message about its unexpected end; ``None`` while the process runs."""
        code = self.exit_code
        if code is None:
            return None
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}{self.last_error_line()}"
        return f"{self.role} died ({how})"

    def last_error_line(self) -> str:
        """Return the last line of its stderr, for the end of a sentence."""
        lines = self._errors.read_text("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f": {mask(last)}" if last else ""

    def finish(self) -> str | None:
        """End the process within ten seconds; return a message where that failed."""
        if self.exit_code is not None:
            return None
        with suppress(OSError):
            self._stdin.close()
        if self._by_signal:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_LONGEST_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"{self.role} did not end in time and was killed"
        return (
            None if code in _ORDERLY else f"{self.role} did not end in order (exit code {code}{self.last_error_line()})"
        )


def _with_its_parent() -> Callable[[], None] | None:
    """Return what makes a process end with its parent, on Linux."""
    if sys.platform != "linux":
        return None
    # Looked up before the fork, because little is safe after it.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed in between

    return ask
