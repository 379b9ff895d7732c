"""The processes of refresher: starts, suspends and kills them, and reports kills to the ledger."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from refresher.common.errors import GrantFileError
from refresher.grants.encoding import decode
from refresher.storage import records
from refresher.storage.directories import Directories
from refresher.storage.journal import Mark, read_intent
from tests.faults.soak.ledger import Ledger
from tests.support import parts

__all__ = ["Run", "Sandbox"]

# Under libfaketime, time.sleep fails: its clock_nanosleep refuses the arguments. Event.wait works.
_SLEEP: Final = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""

_LONGEST: Final = 120.0


class Run:
    """One process of refresher; ``stdout`` and ``stderr`` can be read by any caller."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.killed = False
        """Whether a fault has killed it; its exit code is ignored then."""
        self.busy = threading.Lock()
        """Held by the fault that affects it: one at a time."""

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self.process.poll() is None


class Sandbox:
    """The environment of refresher in a soak test: home, state, clock and logs."""

    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.home = root / "home"
        self.state = self.home / ".local/state/refresher"
        self.logs = root / "logs"
        self.spill = root / "spill"
        self.ledger = ledger
        self._clock = root / "clock"
        self._clock.write_text("+0s")
        library = parts.faketime()
        self.has_clock = library is not None
        self._environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        if library is not None:
            self._environment |= {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",
                "NO_FAKE_STAT": "1",
                "PYTHONPATH": str(root / "python"),
            }
        for directory in (self.home, self.logs, self.spill, root / "python"):
            directory.mkdir(mode=0o700)
        (root / "python/sitecustomize.py").write_text(_SLEEP)

    @property
    def directories(self) -> Directories:
        """The directories of refresher."""
        state = self.state
        return Directories(state=state, tokens=state / "tokens", demands=state / "demands", spill=self.spill)

    def set_clock(self, offset: str) -> None:
        """Set the clock of refresher and its readers."""
        self.ledger.clock_set()
        following = self._clock.with_name("clock.next")
        following.write_text(offset)
        following.rename(self._clock)

    def refresher(self, *arguments: str, log: IO[str] | int, stdout: IO[str] | int = subprocess.PIPE) -> Run:
        """Start the command."""
        return Run(self.python("-m", "refresher", "--spill-dir", str(self.spill), *arguments, log=log, stdout=stdout))

    def python(
        self, *arguments: str, log: IO[str] | int, stdout: IO[str] | int = subprocess.PIPE
    ) -> "subprocess.Popen[str]":
        """Start a Python program in this environment."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the soak test, which ends them itself
        )

    def finish(self, run: Run) -> tuple[int, str]:
        """Wait for a command; return its exit code and what it printed."""
        try:
            stdout, _ = run.process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            self.ledger.journal.violated("", f"{run.process.args!r} does not end")
            self.kill(run)
            stdout, _ = run.process.communicate()
        return run.process.returncode, stdout

    @contextmanager
    def suspended(self, run: Run) -> Iterator[bool]:
        """Suspend a process; yield False if it has ended."""
        pid = run.process.pid
        try:
            if run.alive:
                run.process.send_signal(signal.SIGSTOP)
                ends = time.monotonic() + 5
                while not _is_suspended(pid) and time.monotonic() < ends:
                    time.sleep(0.001)
            yield run.alive
        finally:
            run.process.send_signal(signal.SIGCONT)

    def kill(self, run: Run) -> None:
        """Kill a process, and report its requests in flight as lost."""
        with self.suspended(run) as alive:
            if alive:
                run.killed = True
                for name, fingerprint in self.in_flight(run.process.pid):
                    self.ledger.killed(name, fingerprint)
                run.process.kill()

    def in_flight(self, pid: int) -> list[tuple[str, str]]:
        """Return the names and refresh tokens that a process has sent and whose answers it has not saved."""
        found = []
        for name in self._locked_by(pid):
            with suppress(OSError, ValueError, GrantFileError):
                begun = read_intent(self.directories.intent(name))
                if begun is None or begun[1] is not Mark.SENT:
                    continue
                intent = begun[0]
                stored = decode(self.directories.record(name).read_bytes(), name)
                saved = [
                    records.read_candidate(path, name, self.directories.keys).record
                    for path in self.directories.candidates(name)
                ]
                if stored.checksum == intent.begun_from and not any(
                    each is not None and each.begun_from == stored.checksum for each in saved
                ):
                    found.append((name, intent.fingerprint))
        return found

    def _locked_by(self, pid: int) -> list[str]:
        inodes = {path.stat().st_ino: path.stem for path in self.directories.grants.glob("*.lock")}
        held = []
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and fields[4] == str(pid):
                inode = int(fields[5].rpartition(":")[2])
                held += [inodes[inode]] if inode in inodes else []
        return held


def _is_suspended(pid: int) -> bool:
    try:
        return all(
            path.read_text().rpartition(")")[2].split()[0] in "TtZX"
            for path in Path(f"/proc/{pid}/task").glob("*/stat")
        )
    except OSError:
        return True  # it has ended
