"""Runs refresher and its agents, each as a user of its own, and checks that no grant is harmed."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from refresher.grants.encoding import decode
from refresher.grants.record import Grant
from shim._token import TokenFile, parse
from shim.errors import TokenFileError
from tests.faults.fuzz.plan import Plan
from tests.faults.fuzz.server import FREE, LOSSY, STRICT, Server
from tests.support.vault import Vault
from tests.support.warm import AVAILABLE, WarmProcess

__all__ = ["Fuzz", "Round", "missing"]

ROOT: Final = Path(__file__).parents[3]
OWNER, OWN_GROUP, AGENTS = 12344, 12344, 12346
USERS: Final = (12347, 12347, 12348)
_FAST: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where a file is made in no time: on a disk, most of the time would go into the files of the agents."""
_LONGEST: Final = 90.0
_ENDED: Final = 2
"""The exit code that no agent may cause: refresher does nothing at all."""


def missing() -> str | None:
    """Return why the fuzz cannot run here, ``None`` if it can."""
    return None if AVAILABLE and os.geteuid() == 0 else "the fuzz runs as several users: it needs root, and Linux"


class Round(NamedTuple):
    """What a round did, and the violations that it found."""

    exchanges: int
    doubts: int
    commands: Counter[str]
    operations: Counter[str]
    violations: list[str]


class Fuzz:
    """One round. ``shared``: demands/ is in a directory in which anybody can make files, like ``/tmp``."""

    def __init__(self, seed: str, *, shared: bool, most: int = 6000) -> None:
        self.violations: list[str] = []
        self._seed = seed
        self._random = random.Random(seed)
        self._shared = shared
        self._most = most
        self._strict = () if shared else STRICT  # there, agents can bring an old demand back with its directory
        self._lossy = (*LOSSY, *STRICT) if shared else LOSSY
        self._commands: Counter[str] = Counter()
        self._operations: Counter[str] = Counter()
        self._doubts = 0
        self._vault = Vault()
        self._ended = 0.0
        self._interrupted = threading.Event()

    def run(self, seconds: float, interrupted: threading.Event | None = None) -> Round:
        """Work for so long beside the agents, then check everything."""
        self._interrupted = interrupted or self._interrupted
        with ExitStack() as stack:
            place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_FAST, ignore_cleanup_errors=True)
            root = Path(stack.enter_context(place))
            self._prepare(root)
            self._server = stack.enter_context(Server())
            self._server.random.seed(self._seed)
            for name in (*FREE, *self._lossy):
                self._import(name)
            self._server.losing.update(dict.fromkeys(self._lossy, 0.2))
            with self._daemon_running():
                with self._agents_running():
                    self._ended = time.monotonic() + seconds
                    while time.monotonic() < self._ended and not self._interrupted.is_set():
                        self._act()
                self._calm()
            self._check()
        return Round(
            sum(map(len, self._server.presented.values())),
            self._doubts,
            self._commands,
            self._operations,
            self.violations,
        )

    # --- directories and processes --------------------------------------------------------------------------------

    def _prepare(self, root: Path) -> None:
        self._root, self._home = root, root / "home"
        root.chmod(0o711)
        self._state, self._logs = self._home / "state", root / "logs"
        open_to_all = root / "open"
        self._spill = open_to_all / "spill"
        self._demands = (open_to_all if self._shared else self._state) / "demands"
        self._private = root / "private"
        for directory, mode, user in (
            (self._home, 0o711, OWNER),
            (self._private, 0o700, OWNER),
            (open_to_all, 0o1777, 0),
            (self._logs, 0o700, 0),
            *((root / f"agent-{number}", 0o755, user) for number, user in enumerate(USERS)),
        ):
            directory.mkdir()
            os.chown(directory, user, OWN_GROUP if user == OWNER else AGENTS)
            directory.chmod(mode)
        self._canary = self._private / "canary"
        # Through a link, most of these names look like demands.
        self._kept = {self._canary, *(self._private / f"{FREE[0]}.{number}" for number in range(40))}
        for path in self._kept:
            path.write_text("unchanged")
            os.chown(path, OWNER, OWN_GROUP)
            path.chmod(0o600)
        self._environment = {
            "HOME": str(self._home),
            "PATH": os.environ["PATH"],
            "REFRESHER_STATE_DIR": str(self._state),
            "REFRESHER_SPILL_DIR": str(self._spill),
            "REFRESHER_DEMANDS_DIR": str(self._demands),
            "REFRESHER_TOKENS_GROUP": str(AGENTS),
        }
        self._plan = Plan.made(root / "plan")

    def _start(self, *arguments: str, **more: Any) -> WarmProcess:
        user = (str(OWNER), str(OWN_GROUP), str(AGENTS))
        command = ["tests.support.as_user", *user, *arguments]
        return WarmProcess(command, env=self._environment, cwd="/", stdin=subprocess.DEVNULL, **more)

    def _run(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and its standard output."""
        process = self._start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._commands[arguments[0]] += 1
        try:
            stdout, stderr = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.violations.append(f"{arguments} did not end")
            return -1, ""
        public = stderr if arguments[0] == "token" else stdout + stderr
        self._check_output(str(arguments), public)
        if process.returncode in (1, _ENDED) or not 0 <= process.returncode < 10:
            self.violations.append(f"{arguments} ended with {process.returncode}: {stderr[-1000:]}")
        return process.returncode, stdout

    def _check_output(self, of: str, text: str) -> None:
        self._vault.learn_from(self._state)
        if leaks := self._vault.leaks_in(text):
            self.violations.append(f"I7: {of} printed a secret: {leaks}")
        for words in ("Traceback", "internal error"):
            if (at := text.find(words)) >= 0:
                self.violations.append(f"{of} printed {words}: {text[max(at - 200, 0) : at + 1500]}")

    @contextmanager
    def _daemon_running(self) -> Iterator[None]:
        self._log = self._logs / "daemon.log"
        self._start_daemon()
        try:
            yield
            self._stop_daemon()
        finally:
            self._daemon.kill()
            self._daemon.wait()
        self._check_output("the daemon", self._log.read_text(errors="replace"))

    def _start_daemon(self) -> None:
        with self._log.open("a") as log:
            self._daemon = self._start("run", stdout=log, stderr=log)

    def _stop_daemon(self) -> None:
        self._daemon.send_signal(signal.SIGTERM)
        code = self._daemon.wait(_LONGEST)
        if code not in (0, -signal.SIGTERM):  # the second: before its handler was there
            self.violations.append(f"the daemon ended with {code}: {self._log.read_text(errors='replace')[-2000:]}")

    @contextmanager
    def _agents_running(self) -> Iterator[None]:
        self._wait(self._demands.is_dir, "the daemon makes its directories")
        processes = []
        try:
            for number, user in enumerate(USERS):
                others = (self._state, self._state / "grants", self._state / "tokens", self._home, self._root)
                given = {
                    "seed": self._seed,
                    "number": number,
                    "user": user,
                    "group": AGENTS,
                    "plan": str(self._root / "plan"),
                    "demands": str(self._demands),
                    "private": [str(path) for path in (self._private, *others)],
                    "places": [str(self._demands), str(self._spill)],
                    "tokens": str(self._state / "tokens"),
                    "others": [str(path) for path in (*others, self._spill.parent, self._root / f"agent-{number}") * 2]
                    + [str(self._spill)],
                    "targets": [str(path) for path in (*others, self._private, self._canary, self._spill)]
                    + [str(self._state / f"tokens/{name}.json") for name in FREE]
                    + [str(self._state / f"grants/{name}.json") for name in FREE],
                    "free": [*FREE, *self._lossy],
                    "strict": [*self._strict],
                    "most": self._most,
                }
                command = [sys.executable, "-m", "tests.faults.fuzz.agent", json.dumps(given)]
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
            yield
        finally:
            for process in processes:
                self._end(process)

    def _end(self, agent: "subprocess.Popen[str]") -> None:
        try:
            stdout, stderr = agent.communicate("", timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            agent.kill()
            stdout, stderr = agent.communicate()
        if agent.returncode == 0:
            self._operations.update(json.loads(stdout))
        else:
            self.violations.append(f"the fuzz itself has an error: {stderr}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + _LONGEST
        while not condition():
            if time.monotonic() > ends:
                self.violations.append(f"after {_LONGEST:.0f} s still not true: {what}")
                return
            time.sleep(0.005)

    # --- what a person, cron and a cleaner do ---------------------------------------------------------------------

    def _import(self, name: str) -> None:
        fields = self._server.grant(name)
        self._vault.learn(fields["refresh_token"])
        path = self._home / f"{name}.import.json"
        path.touch(0o600)
        os.chown(path, OWNER, OWN_GROUP)
        path.write_text(json.dumps(fields))
        code, _ = self._run("import", name, "--replace", "--from", str(path))
        if code != 0:
            self.violations.append(f"an import of {name} ended with {code}")

    def _act(self) -> None:
        if (code := self._daemon.poll()) is not None:
            self.violations.append(
                f"the daemon ended by itself with {code}: {self._log.read_text(errors='replace')[-2000:]}"
            )
            self._start_daemon()
        act, *arguments = self._random.choices(
            [
                ("run-once", "--json"),
                ("run-once", "--force", "--json", self._random.choice((*FREE, *self._lossy))),
                ("status", "--json"),
                ("token", self._random.choice(FREE), "--wait", "1s"),
                ("log in",),
                ("clean",),
                ("restart",),
                ("doubt",),
                ("pause",),
            ],
            [4, 4, 2, 3, 4, 6 * self._shared, 1, 12 * bool(self._strict), 6],
        )[0]
        if act == "doubt":
            self._doubt(self._random.choice(self._strict))
        elif act == "log in":
            for name in self._lossy:
                if (record := self._record(name)) is None or record.dead:
                    self._import(name)
        elif act == "clean":
            stopped = self._random.random() < 0.5
            if stopped:
                self._stop_daemon()
            with suppress(OSError):
                _empty(self._demands.parent)  # as systemd-tmpfiles may do
            self._interrupted.wait(self._random.uniform(0, 0.3))
            if stopped:
                self._start_daemon()
        elif act == "restart":
            self._stop_daemon()
            self._start_daemon()
        elif act == "pause":
            self._interrupted.wait(self._random.uniform(0.05, 0.5))
        else:
            self._run(act, *arguments)

    def _doubt(self, name: str) -> None:
        """Have ``name`` in doubt beside demands that are all older than its token, which must not end the doubt (I1)."""
        stopped = self._random.random() < 0.7
        if stopped:
            # Nobody removes the demands that the agents make meanwhile.
            self._stop_daemon()
            self._interrupted.wait(self._random.uniform(0.05, 0.4))
        record = self._record(name)
        expected = (-1 if record is None else record.generation) + 2
        number = self._plan.raise_floor(STRICT.index(name), expected + 1)
        self._wait(lambda: min(map(self._plan.seen, range(len(USERS)))) >= number, "every agent follows the plan")
        self._import(name)
        self._run("run-once", "--json")
        self._wait(lambda: self._published(name) >= expected, f"{name} is published")
        self._server.losing[name] = 1
        self._run("run-once", "--force", "--json", name)
        self._server.losing[name] = 0
        sent = len(self._server.presented[name])
        if stopped:
            self._start_daemon()
        for arguments in self._random.choices([("--force", name), (name,), ()], k=self._random.randrange(1, 4)):
            self._run("run-once", *arguments, "--json")
            self._interrupted.wait(self._random.uniform(0, 0.3))
        record = self._record(name)
        seen = record and (record.generation, record.doubt is not None, record.dead)
        if seen != (expected, True, False) or len(self._server.presented[name]) != sent or self._server.reuses(name):
            self.violations.append(
                f"I1: a demand that is older than its token ended the doubt of {name}, or rotated it: {seen}"
            )
        self._doubts += 1

    # --- the end --------------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Without agents and demands, log in again where a token was lost, and rotate each grant once."""
        self._server.losing.clear()
        self._stop_daemon()
        with suppress(FileNotFoundError):
            if self._demands.is_symlink() or self._demands.lstat().st_uid != OWNER:
                _empty(self._demands.parent)
        with suppress(FileNotFoundError):
            _empty(self._demands)
        for name in (*self._lossy, *self._strict):
            if (record := self._record(name)) is None or record.dead or record.doubt is not None:
                self._import(name)
        _, stdout = self._run("run-once", "--force", "--json")
        outcomes = {result["name"]: result["outcome"] for result in json.loads(stdout)["results"]}
        # Where agents demanded token after token, refresher says that a server refuses the tokens, and rotates.
        if outcomes.keys() != {*FREE, *LOSSY, *STRICT} or not {*outcomes.values()} <= {"rotated", "token_rejected"}:
            self.violations.append(f"without agents, not every grant rotates: {outcomes}")
        self._start_daemon()

    def _check(self) -> None:
        for name in (*FREE, *LOSSY, *STRICT):
            token = self._token(name)
            if token is None or token.access_token != self._server.newest[name]:
                self.violations.append(f"the token of {name} is not the newest one of the server")
            reuses = self._server.reuses(name)
            if any(name not in self._lossy or reused not in self._server.lost for reused in reuses):
                self.violations.append(f"I3: a refresh token of {name} was sent twice, and its answer was not lost")
        if {path for path in self._private.iterdir() if path.read_text() == "unchanged"} != self._kept:
            self.violations.append("a private file outside the directories was changed")
        for path in self._root.rglob("*"):
            user = path.lstat().st_uid
            within = path.is_relative_to(self._home) or path.is_relative_to(self._private)
            spilled = path.is_relative_to(self._spill) and self._spill.lstat().st_uid == OWNER
            if path in (self._demands, self._spill) or user == 0 or spilled:
                continue
            if (user == OWNER) != (within and not path.is_relative_to(self._demands)):
                self.violations.append(f"{path} belongs to user {user}")
        modes = {self._private: 0o700, self._home: 0o711, self._state: 0o711}
        for path, mode in (modes | {self._state / "grants": 0o700, self._state / "tokens": 0o750}).items():
            if (found := stat.S_IMODE(path.lstat().st_mode)) != mode:
                self.violations.append(f"the mode of {path} is {found:o}")
        for path in (self._state / "grants").iterdir():
            if path.suffix not in (".json", ".lock", ".barred"):
                self.violations.append(f"left over: {path.name}")
        for path in (self._state / "tokens").iterdir():
            if path.stem not in (*FREE, *LOSSY, *STRICT) or stat.S_IMODE(path.lstat().st_mode) != 0o640:
                self.violations.append(f"an unexpected token file: {path.name}")

    def _record(self, name: str) -> Grant | None:
        path = self._state / f"grants/{name}.json"
        record = decode(path.read_bytes(), name).record if path.exists() else None
        return record if isinstance(record, Grant) else None

    def _token(self, name: str) -> TokenFile | None:
        try:
            return parse((self._state / f"tokens/{name}.json").read_bytes())
        except (FileNotFoundError, TokenFileError):
            return None

    def _published(self, name: str) -> int:
        token = self._token(name)
        return -1 if token is None else token.generation


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if not path.is_symlink() and path.is_dir():  # an agent makes links to names that no file can have
            shutil.rmtree(path)
        else:
            path.unlink()
