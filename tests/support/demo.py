"""A running demo: its processes, and the secrets that it writes to files."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.command import Command, Done, wait_until

__all__ = ["Demo"]

_MODULES = {"refresher", "refresher.demo.server", "refresher.demo.agent"}


class _Running(NamedTuple):
    """A process that runs."""

    pid: int
    parent: int
    module: str


def _running() -> Iterator[_Running]:
    """Yield the processes of this machine, without zombies."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if state != "Z":
            yield _Running(int(directory.name), int(parent), command[2] if "-m" in command[1:2] else "")


class Demo:
    """A running demo, with its temporary directory and processes."""

    def __init__(self, refresher: Command, temporary: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pids: dict[str, int] = {}
        self.secrets: set[str] = set()
        self._refresher = refresher
        self._temporary = temporary
        self._output = ""

    def has_begun(self) -> bool:
        """Whether the server, the daemon and the agent run."""
        self.pids = {process.module: process.pid for process in _running() if process.parent == self.process.pid}
        return self.pids.keys() >= _MODULES  # a child that has only forked has the command line of its parent

    def has_ended(self) -> bool:
        """Whether all processes of the demo have ended."""
        return not {self.process.pid, *self.pids.values()} & {process.pid for process in _running()}

    def kill(self) -> None:
        """Kill the processes that a failed demo left behind."""
        left = {process.pid for process in _running()}
        for pid in left & set(self.pids.values()):
            os.kill(pid, signal.SIGKILL)

    def wait_for(self, words: str) -> None:
        """Read the output until it contains ``words``."""
        assert self.process.stdout is not None
        while words not in self._output:
            # Not through the buffer of the pipe: communicate() does not return what the buffer holds.
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended without {words!r}: {self._output}"
            self._output += data.decode()

    def grant(self) -> dict[str, str]:
        """Return the private record of the demo."""
        [path] = self._temporary.glob("*/state/grants/demo.json")
        record: dict[str, str] = json.loads(path.read_bytes())["record"]
        return record

    def learn(self) -> None:
        """Add the secrets that are in files now."""
        for pattern in ("login.json", "state/grants/*", "state/tokens/*.json"):
            paths: list[Path] = []
            with suppress(OSError):  # the demo removes its directories at the end
                paths.extend(self._temporary.glob(f"*/{pattern}"))
            for path in paths:
                with suppress(OSError, ValueError):
                    fields = json.loads(path.read_bytes().rstrip(b"\0"))
                    self._keep(fields.get("record", fields))

    def _keep(self, fields: dict[str, str | None]) -> None:
        found = (fields.get(key) for key in ("refresh_token", "access_token", "client_secret"))
        self.secrets |= {secret for secret in found if secret}

    def finish(self) -> Done:
        """Wait for the end, and check that no secret was printed."""

        def has_ended() -> bool:
            self.learn()
            return self.process.poll() is not None

        wait_until(has_ended, "the demo ends")
        self._refresher.vault.learn(*self.secrets)
        done = self._refresher.finish(self.process)
        assert not self._refresher.vault.leaks_in(self._output)
        return done._replace(stdout=self._output + done.stdout)
