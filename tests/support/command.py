"""The real command, in a separate process and an empty home."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from refresher import config
from refresher.common import clocks
from refresher.grants.encoding import decode
from refresher.grants.record import Grant, Record
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.store import Store
from shim._token import TokenFile, parse
from tests.support.traced import TracedProcess, can_attach
from tests.support.vault import Vault
from tests.support.warm import AVAILABLE, WarmProcess

__all__ = ["LONGEST", "Command", "Done", "wait_until", "without_times"]

LONGEST = 90.0
"""The limit for a command in seconds."""


_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d (?=refresher: )")


class Done(NamedTuple):
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def results(self) -> dict[str, Any]:
        """The results of ``run-once --json`` by name."""
        return {result["name"]: result for result in json.loads(self.stdout)["results"]}

    @property
    def outcome(self) -> str:
        """The outcome of ``run-once --json`` for a single grant."""
        (result,) = self.results.values()
        return str(result["outcome"])


class Command:
    """Runs ``refresher`` as a user would, and searches its output for secrets.

    It forks a process that has the imports, unless ``cold``, or an option that needs a new interpreter.
    """

    def __init__(self, home: Path, vault: Vault, *, cold: bool = False) -> None:
        self.home = home
        self._cold = cold or not AVAILABLE
        self.vault = vault
        self.state = home / ".local/state/refresher"
        self.tokens = self.state / "tokens"
        # The command gets no other variable of the test process.
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

    def __call__(
        self,
        *arguments: str,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> Done:
        """Run the command to its end."""
        process = self.start(*arguments, environment=environment, prefix=prefix)
        return self.finish(process, stdin)

    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        stopped: bool = False,
    ) -> subprocess.Popen[str]:
        """Start the command without waiting for it.

        ``prefix``: a program that starts the command, or strace, which attaches to it. ``stopped``: the command waits
        for SIGCONT before its first line.
        """
        options: dict[str, Any] = {
            "env": {**self.environment, **(environment or {})},
            "cwd": self.home,
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        command = ["refresher", *arguments]
        if not (self._cold or _changes_the_start(options["env"])):
            if not prefix:
                return WarmProcess(command, stopped=stopped, **options)
            if prefix[0] == "strace" and can_attach():
                return TracedProcess(command, prefix, **options)
        assert not stopped, "only a warm start can be stopped"
        return subprocess.Popen([*prefix, sys.executable, "-m", *command], text=True, **options)

    def finish(self, process: subprocess.Popen[str], stdin: str = "") -> Done:
        """Wait for a started command, and search its output for secrets."""
        try:
            stdout, stderr = process.communicate(stdin, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.vault.learn_from(self.state)
        assert isinstance(process.args, list)
        # These two commands print an access token.
        public = stderr if {"token", "headers"} & set(process.args) else stdout + stderr
        leaks = self.vault.leaks_in(public)
        assert not leaks, f"the output of {process.args!r} holds a secret: {leaks}"
        assert "Traceback" not in stderr, stderr
        return Done(process.returncode, stdout, stderr)

    def write_import(self, name: str, fields: Mapping[str, Any]) -> Path:
        """Write an import file."""
        path = self.home / f"{name}.import.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(fields))
        self.vault.learn(*(fields.get(key) for key in ("refresh_token", "access_token", "client_secret")))
        return path

    def import_grant(self, name: str, fields: Mapping[str, Any], *options: str) -> Done:
        """Import with the command, and check that it succeeds."""
        done = self("import", name, "--from", str(self.write_import(name, fields)), *options)
        assert done.code == 0, done.stderr
        return done

    def bring(
        self, name: str, fields: Mapping[str, Any], *, replace: bool = False, store: Store | None = None
    ) -> Grant:
        """Import as the command does, without a separate process; into ``store`` if the grants are not in files."""
        self.vault.learn(*(fields.get(key) for key in ("refresh_token", "access_token", "client_secret")))
        parsed = import_request.parse(name, json.dumps(fields).encode(), clocks.now())
        place = FileStore(self.directories) if store is None else store
        return store_grant(place, parsed, replace=replace, if_absent=False, stopping=lambda: False).grant

    @property
    def directories(self) -> Directories:
        """The directories of the command."""
        names = ("spill_dir", "encryption_key", "previous_encryption_key")
        given = {"state_dir": str(self.state)} | {
            name: self.environment.get(f"REFRESHER_{name.upper()}") for name in names
        }
        return config.resolve(given, None).directories

    def record(self, name: str) -> Record:
        """Read the private record."""
        record = decode((self.state / f"grants/{name}.json").read_bytes(), name, self.directories.keys).record
        assert record is not None
        return record

    def grant(self, name: str) -> Grant:
        """Read the private record of a grant that is not removed."""
        record = self.record(name)
        assert isinstance(record, Grant)
        return record

    def refresh_token(self, name: str) -> str:
        """Read the refresh token of a grant that has one."""
        token = self.grant(name).refresh_token
        assert token is not None
        return token.reveal()

    def token(self, name: str) -> TokenFile:
        """Read the published token file."""
        return parse((self.tokens / f"{name}.json").read_bytes())

    def leftovers(self) -> list[str]:
        """Return the names in ``grants/`` that are neither records nor locks nor the socket of a daemon."""
        return sorted(
            path.name
            for path in (self.state / "grants").iterdir()
            if path != self.directories.health_socket
            and (path.suffix not in (".json", ".lock") or path.name.startswith(".."))
        )


def without_times(stderr: str) -> str:
    """Return log lines without their times, which each line must have."""
    lines = stderr.splitlines(keepends=True)
    assert all(_TIME.match(line) for line in lines if "refresher: " in line), stderr
    return "".join(_TIME.sub("", line) for line in lines)


def _changes_the_start(environment: Mapping[str, str]) -> bool:
    starts = ("LANG", "LC_", "LD_", "OPENSSL_", "PYTHON", "TZ")
    return any(name.startswith(starts) for name in environment if name != "PYTHONDONTWRITEBYTECODE")


def wait_until(condition: Callable[[], bool], what: str, longest: float = 90.0) -> None:
    """Wait until ``condition`` holds; ``what`` names it in the error."""
    ends = (began := time.monotonic()) + longest
    while not condition():
        now = time.monotonic()
        assert now < ends, f"after {longest} s still not true: {what}"
        # A condition that asks a database or starts a process must not keep a processor busy.
        time.sleep(min(max(4 * (now - began), 0.01), 0.3))
        began = time.monotonic()
