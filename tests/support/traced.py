"""Forked commands under strace: strace attaches to them, and does not trace the start of the interpreter."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.warm import AVAILABLE, WarmProcess

__all__ = ["TracedProcess", "can_attach"]

_LONGEST: Final = 90.0
_RESTRICTION: Final = Path("/proc/sys/kernel/yama/ptrace_scope")


def can_attach() -> bool:
    """Whether strace may attach to a process that is not its child."""
    return AVAILABLE and (os.geteuid() == 0 or not _RESTRICTION.exists() or _RESTRICTION.read_text().strip() == "0")


class TracedProcess(WarmProcess):
    """A command with strace attached before its first line; ``strace``: its command line, with options only."""

    def __init__(self, module_and_arguments: Sequence[str], strace: Sequence[str], **options: Any) -> None:
        super().__init__(module_and_arguments, stopped=True, **options)
        # A process that has not stopped yet would stop only after the SIGCONT.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        self._tracer = subprocess.Popen([*strace, "-p", str(self.pid)], stdin=subprocess.DEVNULL)
        ends = time.monotonic() + _LONGEST
        while not self._is_traced():
            if self._tracer.poll() is not None or time.monotonic() > ends:
                self.kill()
                raise AssertionError("strace did not attach")
            time.sleep(0.001)
        self.send_signal(signal.SIGCONT)

    def _is_traced(self) -> bool:
        return "TracerPid:\t0\n" not in Path(f"/proc/{self.pid}/status").read_text()

    def poll(self) -> int | None:
        """Return the exit code once strace has ended."""
        code = super().poll()
        if code is not None:
            self._tracer.wait()
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of both."""
        code = super().wait(timeout)
        self._tracer.wait(timeout)
        return code
