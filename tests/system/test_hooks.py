"""Hooks of the real commands: run-once waits for them, run never does, and a bad one costs no rotation."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.config import HOOKS
from refresher.grants.record import Grant
from refresher.storage import records
from tests.support.cli import one_line
from tests.support.command import Command, wait_until, without_times
from tests.support.daemon import heard, published, stopped
from tests.support.hook_scripts import RECORD, configure, events
from tests.support.token_server import TokenServer
from tests.support.unreachable import LIVE, UNREACHABLE

Daemon = Callable[..., subprocess.Popen[str]]

HANG = 'cat >/dev/null; echo $$ >>"$HOME/pids"; exec sleep 1000'


def pids(refresher: Command) -> list[str]:
    path = refresher.home / "pids"
    return path.read_text().split() if path.exists() else []


def ended(pid: str) -> bool:
    """Whether a process has ended; it may wait for a parent that has ended too."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except FileNotFoundError:
        return True


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_each_hook_runs_when_its_time_has_come(refresher: Command) -> None:
    """If it failed, a person would not learn under cron that a login needs them, or that it works again."""
    configure(refresher, **dict.fromkeys(HOOKS, RECORD))
    with TokenServer(lambda _: 3600, grace=3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        done = refresher("run-once", "--json")
        assert done.outcome == "rotated"
        assert done.stderr == ""
        refresher.import_grant("linear", server.grant("linear") | {"refresh_token": "a-refresh-token-of-nobody"}, "--replace")  # fmt: skip
        assert refresher("run-once").code == 3
        refresher.import_grant("linear", LIVE, "--replace")
        assert refresher("run-once", "--force").code == 4
        refresher.import_grant("linear", server.grant("linear"), "--replace")
    refresher.bring("ending", LIVE | {"refresh_token": "a-token-of-a-login-that-ends"})
    stored = records.load(refresher.directories, "ending")
    assert isinstance(stored.record, Grant)
    ends = time.time() + 3000
    changed = msgspec.structs.replace(stored.record, login_ends_at=ends, authorized_at=ends - 30 * 86400)
    records.write(refresher.directories, "ending", stored, changed)
    refresher("run-once", "ending")
    found = [(event["hook"], event["name"], event["state_before"], event["state"]) for event in events(refresher)]
    assert found == [
        ("on_rotated", "linear", None, None),
        ("on_reauthorization_required", "linear", "active", "reauthorization_required"),
        ("on_restored", "linear", "reauthorization_required", "active"),
        ("on_failing", "linear", "active", "failing"),
        ("on_restored", "linear", "failing", "active"),
        ("on_login_ending", "ending", None, None),
    ]
    rotated, dead, _, failing, _, ending = events(refresher)
    assert (rotated["outcome"], rotated["generation"], rotated["advice"]) == ("rotated", 1, None)
    assert "the login has ended" in dead["detail"]
    assert dead["advice"] == "refresher login linear"
    assert "127.0.0.1:9" in failing["detail"]
    assert failing["advice"] is None
    assert "the server ends this login in 50 min" in ending["detail"]
    assert ending["advice"] == "refresher login ending"


def test_run_once_prints_its_results_and_then_waits_for_its_hooks(refresher: Command) -> None:
    """If it failed, cron would lose hooks, or a person would wait for a hook to see what happened."""
    configure(refresher, on_rotated=f'until [ -e "$HOME/go" ]; do sleep 0.05; done; {RECORD}')
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        process = refresher.start("run-once")
        assert process.stdout is not None
        assert "OUTCOME" in process.stdout.readline()
        assert "rotated" in process.stdout.readline()
        assert published(refresher) == 1
        assert process.poll() is None
        (refresher.home / "go").touch()
        assert refresher.finish(process).code == 0
    assert [event["name"] for event in events(refresher)] == ["linear"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_hook_and_the_hook(refresher: Command, number: signal.Signals) -> None:
    """If it failed, Ctrl-C would not end a command that waits for a hook, or the hook would run for ever."""
    configure(refresher, on_rotated=HANG, timeout="1h")
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        process = refresher.start("run-once")
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)][1].startswith("linear  rotated")
        wait_until(lambda: pids(refresher) != [] and catches(process, number), "it waits for the hook")
        process.send_signal(number)
        done = refresher.finish(process)
    assert done.code == 0, "the rotation was complete"
    assert without_times(done.stderr) == (
        "refresher: linear: the hook on_rotated still runs, and is ended: refresher ends\n"
    )
    wait_until(lambda: ended(pids(refresher)[0]), "the hook has ended")


def test_token_prints_before_a_slow_hook_has_ended(refresher: Command) -> None:
    """If it failed, a script would wait for the hook of a person before it gets its token."""
    configure(refresher, on_rotated=f'until [ -e "$HOME/go" ]; do sleep 0.05; done; {RECORD}')
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        process = refresher.start("token", "linear")
        assert process.stdout is not None
        token = process.stdout.readline().strip()
        assert server.lives(token)
        (refresher.home / "go").touch()
        assert refresher.finish(process).code == 0


def test_a_broken_hook_is_an_error_for_run_and_a_warning_for_run_once(refresher: Command) -> None:
    """If it failed, a mistyped path would stop the rotations of cron, or nobody would learn of it until it is too late."""
    config = configure(refresher, on_failing=RECORD)
    (config.parent / "on_failing").unlink()
    words = f"on_failing in [hooks] of {config}: there is no program {config.parent}/on_failing"
    started = refresher("run")
    assert started.code == 2
    assert words in one_line(started)
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        refresher.import_grant("away", UNREACHABLE)
        done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "rotated"
    assert done.stderr.count(words) == 1


def test_an_idle_run_once_loads_no_hooks(cold: Command) -> None:
    """If it failed, each run of cron would pay for hooks although nothing has happened."""
    configure(cold, **dict.fromkeys(HOOKS, RECORD))
    cold.import_grant("linear", LIVE)
    done = cold("run-once", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0
    assert "refresher.observers.hub" in done.stderr
    assert not {"refresher.observers.hooks", "selectors"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}  # fmt: skip


def test_a_hook_that_hangs_delays_no_rotation_and_no_stop(refresher: Command, daemon: Daemon) -> None:
    """If it failed, one bad hook would cost the logins of all grants, or systemd would kill refresher at each stop."""
    configure(refresher, **dict.fromkeys(HOOKS, HANG), timeout="1h")
    names = [f"g{number}" for number in range(25)]
    with TokenServer(lambda _: 1) as server:
        for name in names:
            refresher.bring(name, server.grant(name))
        refresher.bring("away", UNREACHABLE)
        process = daemon()
        wait_until(lambda: all(published(refresher, name) >= 4 for name in names), "a hundred rotations")
        wait_until(lambda: len(pids(refresher)) == 2, "two hooks hang")
        log = stopped(refresher, process)
    assert log.count(" still runs, and is ended: refresher ends") == 2
    assert " 20 more: the hook on_rotated did not run: refresher ends" in log
    for pid in pids(refresher):
        wait_until(lambda pid=pid: ended(pid), "the hook has ended")  # type: ignore[misc]


def test_a_reload_changes_the_hooks(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a person who corrects a hook would have to restart refresher."""
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        process = daemon()
        wait_until(lambda: published(refresher) == 1, "it rotates without hooks")
        config = configure(refresher, on_rotated=RECORD)
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        (refresher.state / "demands/linear.1").touch()
        wait_until(lambda: len(events(refresher)) == 1, "the new hook runs")
        config.write_text('[hooks]\non_rotated = "~/nowhere"\n')
        process.send_signal(signal.SIGHUP)
        assert f"there is no program {refresher.home}/nowhere" in heard(process, "cannot reload the configuration")[-1]
        refresher.import_grant("github", server.grant("github"))
        wait_until(lambda: len(events(refresher)) == 2, "the former hook is kept")
        config.write_text("[hooks]\ntimeout = 5\non_rotated = \"sh -c 'exit 3'\"\n")
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        refresher.import_grant("slack", server.grant("slack"))
        line = heard(process, "slack: the hook on_rotated failed: exit code 3")[-1]
    assert "check the command in /" in line
    assert [event["name"] for event in events(refresher)] == ["linear", "github"]


def test_no_kill_of_a_group_reaches_refresher(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a hook that ends with 'kill 0' would end refresher."""
    configure(refresher, on_rotated="kill -KILL 0")
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        process = daemon()
        heard(process, "linear: the hook on_rotated failed: signal 9 ended it")
        (refresher.state / "demands/linear.1").touch()
        wait_until(lambda: published(refresher) == 2, "it goes on")
        assert json.loads(refresher("status", "--json").stdout)["grants"][0]["state"] == "active"
