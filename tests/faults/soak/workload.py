"""The workload of a soak test: two daemons, cron, a person, and agents."""

import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from refresher.grants.record import Grant
from tests.faults.soak.ledger import Ledger
from tests.faults.soak.processes import Run, Sandbox
from tests.faults.soak.readers import Readers
from tests.faults.soak.servers import Site

__all__ = ["Agents", "Cron", "Daemon", "Person"]

_START: Final = 3.0
_MOST_MEMORY: Final = 200_000
# Seven for each of about twenty simultaneous rotations, and some for the daemon itself.
_MOST_FILES: Final = 200
_RUN_ONCE_CODES: Final = {0, 3, 4, 5, 6}


class Daemon:
    """Keeps one ``refresher run`` running, as a supervisor does."""

    def __init__(self, sandbox: Sandbox, number: int, *options: str) -> None:
        self.peak_memory = 0
        """KiB."""
        self.peak_files = 0
        self.run: Run | None = None
        self._sandbox = sandbox
        self._options = options
        self._log = sandbox.logs / f"daemon-{number}.log"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop it as a supervisor does, and check its exit code."""
        self._ending.set()
        self._thread.join(150)

    def _supervise(self) -> None:
        while not self._ending.is_set():
            with self._log.open("a") as log:
                began = time.monotonic()
                self.run = run = self._sandbox.refresher(*self._options, "run", log=log)
            while run.alive and not self._ending.wait(0.2):
                self._measure(run)
            if run.alive:
                run.process.terminate()
            code, _ = self._sandbox.finish(run)
            # Before Python has started, a signal ends the process.
            too_early = time.monotonic() - began < _START and code in (-signal.SIGTERM, -signal.SIGHUP)
            if code != 0 and not run.killed and not too_early:
                self._sandbox.ledger.journal.violated("", f"a daemon ended by itself with {code}")
            self._ending.wait(0.3)

    def _measure(self, run: Run) -> None:
        try:
            status = Path(f"/proc/{run.process.pid}/status").read_text()
            kinds = Counter(str(path.readlink()) for path in Path(f"/proc/{run.process.pid}/fd").iterdir())
        except OSError:
            return
        memory = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
        files = kinds.total()
        self.peak_memory, self.peak_files = max(self.peak_memory, memory), max(self.peak_files, files)
        if memory > _MOST_MEMORY or files > _MOST_FILES:
            self._sandbox.ledger.journal.violated("", f"a daemon grows: {memory} KiB, {kinds.most_common(9)}")


class Cron:
    """Starts ``run-once --horizon`` every few seconds."""

    def __init__(self, sandbox: Sandbox, pause: float) -> None:
        self.run: Run | None = None
        self._sandbox = sandbox
        self._pause = pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let the last run finish."""
        self._ending.set()
        self._thread.join(150)

    def _go(self) -> None:
        while not self._ending.wait(self._pause):
            with (self._sandbox.logs / "cron.log").open("a") as log:
                arguments = ("run-once", "--horizon", f"{self._pause:.0f}s", "--json")
                self.run = run = self._sandbox.refresher(*arguments, log=log)
                code, _ = self._sandbox.finish(run)
            if not run.killed and code not in _RUN_ONCE_CODES:
                self._sandbox.ledger.journal.violated("", f"run-once under cron ended with {code}")


class Person:
    """Imports, forces and removes grants, one command after the other."""

    def __init__(self, sandbox: Sandbox, ledger: Ledger, readers: Readers, sites: list[Site]) -> None:
        self.run: Run | None = None
        self.acts: Counter[str] = Counter()
        self._sandbox = sandbox
        self._ledger = ledger
        self._readers = readers
        self._sites = {name: site for site in sites for name in site.names}

    def import_(self, name: str) -> bool:
        """Authorize ``name`` again and import the new login."""
        login, fields = self._sites[name].login(self._ledger, name)
        self._ledger.vault.learn(fields.get("client_secret"))
        path = self._sandbox.home / f"{name}.import.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(fields))
        self._ledger.journal.note(name, "a person imports a new login")
        if self._do("import", name, "--replace", "--from", str(path)) != 0:
            return False
        self._ledger.imported(login)
        return True

    def remove(self, name: str) -> None:
        """Remove ``name``."""
        self._ledger.journal.note(name, "a person removes it")
        self._ledger.remove(name)
        if self._do("remove", name) == 0:
            self._ledger.gone(name)

    def force(self, *names: str) -> int:
        """Run ``run-once --force`` for ``names``."""
        for name in names:
            self._ledger.journal.note(name, "a person forces it")
        with self._ledger.forcing(*names):
            return self._do("run-once", "--force", "--json", *names)

    def read(self, name: str) -> None:
        """Run ``status``, and ``token`` for ``name``."""
        self._do("status", "--json")
        self._do("token", name, "--wait", "1s", printing=True)

    def act(self, rng: random.Random) -> None:
        """Import an ended grant again, force a failing one, or do something with a grant without problems."""
        name = rng.choice(sorted(self._sites))
        record = self._readers.record(name)
        dead = [name for name in sorted(self._sites) if self._needs(name)]
        waiting = [name for name in sorted(self._sites) if self._waits(name)]
        roll = rng.random()
        if waiting and roll < 0.5:
            # All of them: if one is in doubt with a live token, --force must not skip its wait.
            self.force(*waiting)
        elif dead and roll < 0.8:
            self.import_(rng.choice(dead))
        elif isinstance(record, Grant):
            act: Callable[[], object] = rng.choices(
                [
                    lambda: self.force(name),
                    lambda: self.import_(name),
                    lambda: self.remove(name),
                    lambda: self.read(name),
                ],
                [5, 2, 1, 2],
            )[0]
            act()

    def _needs(self, name: str) -> bool:
        record = self._readers.record(name)
        return not isinstance(record, Grant) or record.dead

    def _waits(self, name: str) -> bool:
        record = self._readers.record(name)
        return isinstance(record, Grant) and record.failure is not None and not record.dead

    def _do(self, *arguments: str, printing: bool = False) -> int:
        self.acts[arguments[0]] += 1
        with (self._sandbox.logs / "person.log").open("a") as log:
            self.run = run = self._sandbox.refresher(*arguments, log=log)
            code, stdout = self._sandbox.finish(run)
            if not printing:
                log.write(stdout)
        for name in set(arguments) & self._sites.keys():
            self._ledger.journal.note(name, f"{arguments[0]}: {code}")
        return code


class Agents:
    """Programs that call the APIs again and again, through the shim."""

    def __init__(self, sandbox: Sandbox, ledger: Ledger, readers: Readers, sites: list[Site]) -> None:
        self.calls = 0
        self.failures: Counter[str] = Counter()
        self.good_at: dict[str, float] = {}
        """When the last successful call of each name ended (monotonic seconds)."""
        self._ledger = ledger
        self._readers = readers
        given = [f"{name}={site.api.origin}/mcp" for site in sites for name in site.names]
        self._stack = ExitStack()
        self._processes = []
        self._threads = []
        for style in ("sync", "async"):
            log = self._stack.enter_context((sandbox.logs / f"agents-{style}.log").open("a"))
            process = sandbox.python("-m", "tests.faults.soak.agent", style, *given, log=log)
            thread = threading.Thread(target=self._read_events, args=(process,), daemon=True)
            thread.start()
            self._processes.append(process)
            self._threads.append(thread)

    def end(self) -> None:
        """End them by closing their stdin."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process, thread in zip(self._processes, self._threads, strict=True):
            try:
                process.wait(90)
            finally:
                process.kill()
            thread.join(60)
            assert process.stdout is not None
            process.stdout.close()
            if process.returncode != 0:
                self._ledger.journal.violated("", f"the agents ended with {process.returncode}")
        self._stack.close()

    def _read_events(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            name = event["name"]
            if "demand" in event:
                self._ledger.demanded(name, event["demand"])
                continue
            self.calls += 1
            if event["status"] == 200:
                self.good_at[name] = time.monotonic()
            else:
                self.failures[f"{event['status']} {self._reason(name)}"] += 1

    def _reason(self, name: str) -> str:
        token = self._readers.token(name)
        if token is None:
            return "before the first token"
        return token.state if token.error is None else f"{token.state}: {token.error.code}"
