"""Who is about: two daemons, cron, a person, and agents."""

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
from tests.faults.soak.processes import Ground, Run
from tests.faults.soak.readers import Readers
from tests.faults.soak.servers import Place

__all__ = ["Agents", "Cron", "Daemon", "Person"]

_START: Final = 3.0
_MOST_MEMORY: Final = 200_000
# Seven for each of some twenty rotations at once, and some for itself.
_MOST_FILES: Final = 200
_RUN_ONCE_CODES: Final = {0, 3, 4, 5, 6}


class Daemon:
    """Keeps one ``refresher run`` running, as a supervisor does."""

    def __init__(self, ground: Ground, number: int, *options: str) -> None:
        self.peak_memory = 0
        """KiB."""
        self.peak_files = 0
        self.run: Run | None = None
        self._ground = ground
        self._options = options
        self._log = ground.logs / f"daemon-{number}.log"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop it as a supervisor does, and see that it goes in good order."""
        self._ending.set()
        self._thread.join(150)

    def _supervise(self) -> None:
        while not self._ending.is_set():
            with self._log.open("a") as log:
                began = time.monotonic()
                self.run = run = self._ground.refresher(*self._options, "run", log=log)
            while run.alive and not self._ending.wait(0.2):
                self._measure(run)
            if run.alive:
                run.process.terminate()
            code, _ = self._ground.finish(run)
            # Signals that come before Python has started are nobody's to hear.
            too_early = time.monotonic() - began < _START and code in (-signal.SIGTERM, -signal.SIGHUP)
            if code != 0 and not run.killed and not too_early:
                self._ground.ledger.journal.violated("", f"a daemon ended by itself with {code}")
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
            self._ground.ledger.journal.violated("", f"a daemon grows: {memory} KiB, {kinds.most_common(9)}")


class Cron:
    """Starts ``run-once --horizon`` every few seconds, on time or not."""

    def __init__(self, ground: Ground, pause: float) -> None:
        self.run: Run | None = None
        self._ground = ground
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
            with (self._ground.logs / "cron.log").open("a") as log:
                arguments = ("run-once", "--horizon", f"{self._pause:.0f}s", "--json")
                self.run = run = self._ground.refresher(*arguments, log=log)
                code, _ = self._ground.finish(run)
            if not run.killed and code not in _RUN_ONCE_CODES:
                self._ground.ledger.journal.violated("", f"run-once under cron ended with {code}")


class Person:
    """Imports, forces and removes; what a person does is done by one command after another."""

    def __init__(self, ground: Ground, ledger: Ledger, readers: Readers, places: list[Place]) -> None:
        self.run: Run | None = None
        self.acts: Counter[str] = Counter()
        self._ground = ground
        self._ledger = ledger
        self._readers = readers
        self._places = {name: place for place in places for name in place.names}

    def import_(self, name: str) -> bool:
        """Authorize ``name`` anew and import it."""
        login, fields = self._places[name].login(self._ledger, name)
        self._ledger.vault.learn(fields.get("client_secret"))
        path = self._ground.home / f"{name}.import.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(fields))
        self._ledger.journal.note(name, "a person imports it anew")
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
        """Ask for a newer token in any case."""
        for name in names:
            self._ledger.journal.note(name, "a person forces it")
        with self._ledger.forcing(*names):
            return self._do("run-once", "--force", "--json", *names)

    def look(self, name: str) -> None:
        """Look at the state of everything, and print a token."""
        self._do("status", "--json")
        self._do("token", name, "--wait", "1s", printing=True)

    def act(self, dice: random.Random) -> None:
        """Do something: what is dead is imported anew, what waits is forced, and sometimes what is well."""
        name = dice.choice(sorted(self._places))
        record = self._readers.record(name)
        dead = [name for name in sorted(self._places) if self._needs(name)]
        waiting = [name for name in sorted(self._places) if self._waits(name)]
        roll = dice.random()
        if waiting and roll < 0.5:
            # As many as there are: where one is in doubt with a live token, force must not skip its wait.
            self.force(*waiting)
        elif dead and roll < 0.8:
            self.import_(dice.choice(dead))
        elif isinstance(record, Grant):
            act: Callable[[], object] = dice.choices(
                [
                    lambda: self.force(name),
                    lambda: self.import_(name),
                    lambda: self.remove(name),
                    lambda: self.look(name),
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
        with (self._ground.logs / "person.log").open("a") as log:
            self.run = run = self._ground.refresher(*arguments, log=log)
            code, stdout = self._ground.finish(run)
            if not printing:
                log.write(stdout)
        for name in set(arguments) & self._places.keys():
            self._ledger.journal.note(name, f"{arguments[0]}: {code}")
        return code


class Agents:
    """Programs that call the APIs all the time, through the shim."""

    def __init__(self, ground: Ground, ledger: Ledger, readers: Readers, places: list[Place]) -> None:
        self.calls = 0
        self.failures: Counter[str] = Counter()
        self.good_at: dict[str, float] = {}
        """When each name's last good call ended (monotonic seconds)."""
        self._ledger = ledger
        self._readers = readers
        given = [f"{name}={place.api.origin}/mcp" for place in places for name in place.names]
        self._stack = ExitStack()
        self._processes = []
        self._threads = []
        for style in ("sync", "async"):
            log = self._stack.enter_context((ground.logs / f"agents-{style}.log").open("a"))
            process = ground.python("-m", "tests.faults.soak.agent", style, *given, log=log)
            thread = threading.Thread(target=self._hear, args=(process,), daemon=True)
            thread.start()
            self._processes.append(process)
            self._threads.append(thread)

    def end(self) -> None:
        """Have them end, by closing what they listen to."""
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

    def _hear(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            name = said["name"]
            if "demand" in said:
                self._ledger.demanded(name, said["demand"])
                continue
            self.calls += 1
            if said["status"] == 200:
                self.good_at[name] = time.monotonic()
            else:
                self.failures[f"{said['status']} {self._reason(name)}"] += 1

    def _reason(self, name: str) -> str:
        token = self._readers.token(name)
        if token is None:
            return "before the first token"
        return token.state if token.error is None else f"{token.state}: {token.error.code}"
