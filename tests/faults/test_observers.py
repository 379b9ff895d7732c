"""Observers that fail in every way, while many grants are rotated."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from refresher.observers.history import read
from tests.conftest import need
from tests.support.command import LONGEST, Command
from tests.support.parts import mounted, no_mounts
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

_SERVERS: Final = 13
"""refresher sends one server at most 40 requests in a burst."""
_GRANTS: Final = 20

_BROKEN: Final = """
import pathlib, sys, time
from refresher.cli.main import run
from refresher.observers import history, hub
from refresher.storage.directories import Directories

configured = hub._configured
small = pathlib.Path(sys.argv.pop(1))

class Raising:
    name, patience = "raising", 2.0
    def observe(self, events):
        raise ZeroDivisionError("as if")
    def close(self):
        raise ZeroDivisionError("as if")

class Hanging(Raising):
    name, patience = "hanging", 0.2
    def observe(self, events):
        time.sleep(3600)

class OnFullDisk(history.History):
    name = "full"
    def observe(self, events):
        history.little_space = lambda _: None
        super().observe(events)

def made(settings):
    full = OnFullDisk(Directories(state=small, tokens=small, demands=small, spill=small), days=30, megabytes=100)
    return [Raising(), Hanging(), full, *configured(settings)]

class Runner(hub._Runner):
    def __init__(self, observer):
        hub._LONGEST_QUEUE = 50 if observer.name == "hanging" else 4096
        super().__init__(observer)

hub._configured = made
hub._Runner = Runner
sys.exit(run(sys.argv[1:]))
"""


def _run(refresher: Command, small: Path) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-c", _BROKEN, str(small), "run-once", "--force", "--json"],
        env={**refresher.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stderr
    return {result["name"]: result for result in json.loads(done.stdout)["results"]}, done.stderr


def test_500_rotations_go_on_while_every_observer_fails(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a log, a full disk or a hook could cost a person their logins."""
    need(no_mounts())
    (small := tmp_path / "small").mkdir()
    with ExitStack() as stack:
        servers = [stack.enter_context(TokenServer(lambda _: 3600)) for _ in range(_SERVERS)]
        stack.enter_context(mounted(small, "size=64k"))
        (small / "filler").write_bytes(os.urandom(40 * 1024))
        names = []
        for number in range(_SERVERS * _GRANTS):
            names.append(f"grant-{number}")
            refresher.bring(names[-1], servers[number % _SERVERS].grant(names[-1]))
        for generation in (1, 2):
            results, stderr = _run(refresher, small)
            assert {
                name: (result["outcome"], result["generation"]) for name, result in results.items()
            } == dict.fromkeys(names, ("rotated", generation))
            for observer in ("raising", "hanging", "full"):
                assert f"{observer}: events are lost" in stderr
            assert "history: events are lost" not in stderr
    assert {name: refresher.grant(name).generation for name in names} == dict.fromkeys(names, 2)
    assert sum(len(server.presented[name]) for server in servers for name in names) == 2 * len(names)
    assert refresher.leftovers() == []
    assert {event.kind for event in read(refresher.directories)} == {"rotated"}


def test_the_history_holds_no_secret(refresher: Command, vault: Vault) -> None:
    """If it failed, who reads the history, or a copy of it, could use a login (I7)."""
    lives = iter((3600.0, 0.0))
    with TokenServer(lambda _: 3600, refresh_life=lambda _: next(lives), announced=lambda _: "unknown") as server:
        refresher.bring("linear", server.grant("linear"))
        assert refresher("run-once", "--force").code == 0
        vault.learn_from(refresher.state)
        refresher("run-once", "--force")
        assert {event.kind for event in read(refresher.directories)} >= {"rotated", "failed", "state_changed"}
        assert vault.leaks_below(refresher.state) == []


def test_a_run_with_nothing_due_makes_no_history(cold: Command) -> None:
    """If it failed, a run of cron that has nothing to do would load a database each minute, and write to the disk."""
    with TokenServer(lambda _: 3600) as server:
        cold.bring("linear", server.grant("linear"))
        assert cold("run-once", environment={"REFRESHER_HISTORY_DAYS": "0"}).code == 0
        script = (
            "import sys; from refresher.cli.main import run; run(['run-once']); "
            "print({'sqlite3', 'refresher.observers.history'} & {*sys.modules})"
        )
        done = subprocess.run([sys.executable, "-c", script], env=cold.environment, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "set()"
        assert not list(cold.state.glob("events*"))
        assert cold("run-once", "--force").code == 0
        assert cold.directories.history.exists()
