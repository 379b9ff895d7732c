"""Hooks: what a command gets, and what a bad one cannot do. The commands are real processes."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refresher import config
from refresher.common.errors import ConfigError
from refresher.config import HookSettings
from refresher.observers import hooks
from refresher.observers.hooks import Hooks, hook_of
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from tests.support.command import wait_until

KEYS = ["version", "hook", "name", "at", "generation", "state", "state_before", "outcome", "detail", "advice", "coalesced"]  # fmt: skip
VARIABLES = {"PATH", "HOME", "LANG", "USER", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "REFRESHER_HOOK", "REFRESHER_GRANT"}  # fmt: skip

Scripted = Callable[..., Hooks]


def event(name: str = "linear", kind: Any = "rotated", **more: Any) -> Event:
    return Event(at=time.time(), name=name, kind=kind, **more)


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Make hooks of shell scripts, which find their files at ``$HOME``; each key is one hook."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(hooks, "failures", {})
    monkeypatch.setattr(hooks, "_TIME_TO_END", 0.2)

    def make(timeout: float = 90.0, begin: str = "#!/bin/sh\n", **bodies: str) -> Hooks:
        commands: dict[str, tuple[str, ...]] = {}
        for hook, body in bodies.items():
            program = tmp_path / hook
            program.write_text(f"{begin}{body}\n")
            program.chmod(0o755)
            commands[hook] = (str(program),)
        (tmp_path / "config.toml").touch()
        settings = HookSettings(file=tmp_path / "config.toml", commands=commands, timeout=timeout)
        return Hooks(settings, config.resolve({"state_dir": str(tmp_path)}, None).directories)

    return make


@pytest.mark.parametrize(
    ("kind", "states", "hook"),
    [
        ("rotated", (None, None), "on_rotated"),
        ("login_ending", (None, None), "on_login_ending"),
        ("state_changed", ("active", "failing"), "on_failing"),
        ("state_changed", ("failing", "reauthorization_required"), "on_reauthorization_required"),
        ("state_changed", ("failing", "active"), "on_restored"),
        ("state_changed", ("reauthorization_required", "active"), "on_restored"),
        ("state_changed", (None, "invalid_grant_file"), "on_failing"),
        ("state_changed", ("invalid_grant_file", "active"), "on_restored"),
        ("state_changed", ("removed", "active"), None),
        ("failed", (None, None), None),
        ("demanded", (None, None), None),
    ],
)
def test_each_hook_has_its_events(kind: str, states: tuple[str | None, str | None], hook: str | None) -> None:
    """If it failed, a person would not learn that a grant needs them, or would be called for nothing."""
    assert hook_of(event(kind=kind, state_before=states[0], state=states[1])) == hook


def test_a_hook_gets_the_event_and_nothing_else(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a hook could read a secret of refresher, hold its locks, or be ended by its terminal."""
    for variable in ("REFRESHER_STATE_DIR", "HTTPS_PROXY", "SSLKEYLOGFILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "http://user:password@proxy.example")
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    lock = os.open(tmp_path / "a-lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    script = 'cat >"$HOME/input"; env >"$HOME/env"; pwd -P >"$HOME/cwd"; ls -l /proc/$$/fd >"$HOME/fds"; cut -d" " -f5,6 /proc/$$/stat >"$HOME/session"; echo $$ >"$HOME/pid"'
    observer = scripted(on_failing=script)
    happened = event(
        kind="state_changed",
        state_before="active",
        state="failing",
        generation=7,
        detail='he said "no"\n\x1b[31m\udc80',
    )
    observer.observe([happened])
    observer.close()
    os.close(lock)
    text = (tmp_path / "input").read_text("ascii")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert list(found) == KEYS
    assert found == dict.fromkeys(KEYS) | {
        "version": 1,
        "hook": "on_failing",
        "name": "linear",
        "at": happened.at,
        "generation": 7,
        "state": "failing",
        "state_before": "active",
        "detail": happened.detail,
        "coalesced": 0,
    }
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} <= VARIABLES  # the shell sets these four
    assert (environment["REFRESHER_HOOK"], environment["REFRESHER_GRANT"]) == ("on_failing", "linear")
    assert environment["TZ"] == "Asia/Kolkata"
    assert (tmp_path / "cwd").read_text() == "/\n"
    assert "a-lock" not in (tmp_path / "fds").read_text()
    assert "on_failing" in (tmp_path / "fds").read_text()  # the shell has the script open
    pid = (tmp_path / "pid").read_text().strip()
    assert (tmp_path / "session").read_text().split() == [pid, pid]
    assert hooks.failures == {}


def test_a_slow_hook_runs_once_for_all_that_happened_meanwhile(scripted: Scripted, tmp_path: Path) -> None:
    """If it failed, a slow hook would lag behind more and more, or run many times at once."""
    script = 'cat >>"$HOME/input"; until [ -e "$HOME/go" ]; do sleep 0.05; done'
    observer = scripted(on_rotated=script, on_failing='cat >"$HOME/other"')
    observer.observe([event(generation=1)])
    wait_until((tmp_path / "input").exists, "the first run has begun")
    observer.observe([event(generation=number) for number in range(2, 101)])
    observer.observe([event("github", generation=5)])
    observer.observe([event(kind="state_changed", state="failing")])
    wait_until((tmp_path / "other").exists, "another hook runs at the same time")
    (tmp_path / "go").touch()
    observer.close()
    runs = [json.loads(line) for line in (tmp_path / "input").read_text().splitlines()]
    assert [(run["name"], run["generation"], run["coalesced"]) for run in runs] == [
        ("linear", 1, 0),
        ("linear", 100, 98),
        ("github", 5, 0),
    ]


def test_events_of_a_thousand_grants_wait_at_most(scripted: Scripted, tmp_path: Path) -> None:
    """If it failed, a hook that hangs would fill the memory, or what it loses would not be counted."""
    observer = scripted(on_rotated='touch "$HOME/begun"; until [ -e "$HOME/go" ]; do sleep 0.05; done; exit 3')
    observer.observe([event("first")])
    wait_until((tmp_path / "begun").exists, "a run has begun")
    observer.observe([event(f"g{number}") for number in range(1000)])
    with pytest.raises(EventsLost) as lost:
        observer.observe([event(f"g{number}") for number in range(1010)])
    assert lost.value.count == 10
    observer._hooks["on_rotated"]._waiting.clear()
    (tmp_path / "go").touch()
    observer.close()


HARMFUL = {
    "hangs": ("sleep 1000", 0.3, "it did not end within 0 s, and was ended; make it faster, or raise timeout"),
    "ignores SIGTERM": ("trap '' TERM; while :; do sleep 0.1; done", 0.3, "it did not end within 0 s, and was ended"),
    "kills its group": ("kill -KILL 0", 90.0, "signal 9 ended it"),
    "fails": (
        r"printf 'a\033[31mb\nc\0d'; echo e >&2; exit 3",
        90.0,
        "exit code 3; check the command in {}; its last output: a [31mb c de",
    ),
    "prints nothing": ("exit 1", 90.0, "exit code 1; check the command in {}; it printed nothing"),
    "prints 100 MB": ("yes 'a b c' | tr '\\n' ' ' | head -c 100000000; printf END; exit 3", 90.0, "a b END"),
    "prints a secret": (
        "echo POST https://user:word@hooks.example/services/T0/B0/abc-def?key=1 with token rt-0123456789abcdefABCDEF; exit 3",
        90.0,
        "its last output: POST https://hooks.example/... with token [masked]",
    ),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_hook_that_does_harm_is_ended_and_reported(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, tmp_path: Path, harm: str
) -> None:
    """If it failed, one bad hook would hang, end or flood refresher, or nobody would learn of it."""
    script, timeout, words = HARMFUL[harm]
    observer = scripted(timeout, on_rotated=script)
    observer.observe([event()])
    observer.observe([event()])
    observer.close()
    observer.close()
    (line,) = caplog.messages
    assert line.startswith("linear: the hook on_rotated failed: ")
    assert words.format(tmp_path / "config.toml") in line
    assert len(line) < 1400
    assert line.isprintable()
    assert 1 <= hooks.failures["on_rotated"] <= 2


def test_what_a_hook_leaves_running_is_ended(scripted: Scripted, tmp_path: Path) -> None:
    """If it failed, a hook would leave processes behind, or one that holds its output would block all later events."""
    observer = scripted(on_rotated='sleep 1000 & echo $! >"$HOME/child"')
    for _ in range(2):
        observer.observe([event()])
    observer.close()
    child = (tmp_path / "child").read_text().strip()
    wait_until(lambda: not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes(), "the child has ended")  # fmt: skip
    assert hooks.failures == {}


def test_a_hook_need_not_read_its_input(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a simple hook such as 'touch FILE' would be reported as broken, or hang."""
    observer = scripted(on_rotated="exec <&-; exit 0", on_failing="sleep 0.2")
    observer.observe([event(detail="\udc80" * 1000), event(kind="state_changed", state="failing", detail="ы" * 1000)])
    observer.close()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda program: program.unlink(), "there is no program {}: create it"),
        (lambda program: program.chmod(0o644), "{} is not executable: run 'chmod +x {}'"),
        (lambda program: (program.unlink(), program.mkdir()), "{} is not a file"),
        (lambda program: program.chmod(0o757), "anybody can change {}: run 'chmod o-w {}'"),
        (lambda program: program.parent.chmod(0o777), "anybody can write in {parent} and replace {}: run 'chmod o-w"),
        (lambda program: (program.parent / "config.toml").chmod(0o666), "anybody can change {parent}/config.toml"),
    ],
)
def test_a_hook_that_must_not_run_is_named(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    """If it failed, another user could have their program run with access to the refresh tokens."""
    observer = scripted(on_rotated='touch "$HOME/ran"')
    program = tmp_path / "on_rotated"
    settings = HookSettings(file=tmp_path / "config.toml", commands={"on_rotated": (str(program),)}, timeout=30.0)
    hooks.check(settings)
    try:
        change(program)
        with pytest.raises(ConfigError) as refused:
            hooks.check(settings)
        observer.observe([event()])
        observer.close()
    finally:
        tmp_path.chmod(0o700)
    expected = words.format(program, program, parent=tmp_path)
    assert expected in str(refused.value)
    (line,) = caplog.messages
    assert expected in line
    assert not (tmp_path / "ran").exists()
    assert hooks.failures == {"on_rotated": 1}


def test_a_program_of_another_user_is_not_run(scripted: Scripted, tmp_path: Path) -> None:
    """If it failed, another user could change a hook, and read the refresh tokens."""
    if os.geteuid():
        pytest.skip("needs root")
    scripted(on_rotated="exit 0")
    program = tmp_path / "on_rotated"
    settings = HookSettings(file=tmp_path / "config.toml", commands={"on_rotated": (str(program),)}, timeout=30.0)
    os.chown(program, 12345, 12345)
    with pytest.raises(ConfigError, match=f"user 12345 can change {program}: run 'chown 0 {program}'"):
        hooks.check(settings)
    link = tmp_path / "link"
    link.symlink_to("/bin/true")
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"user 12345 can change {link}, which is a link"):
        hooks.check(HookSettings(file=settings.file, commands={"on_rotated": (str(link),)}, timeout=30.0))


@pytest.mark.parametrize("begin", ["#!/nowhere/sh\n", "\x7fELF"])
def test_a_hook_that_the_system_cannot_start_is_reported(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, begin: str
) -> None:
    """If it failed, a wrong first line of a script would end the thread of the hook, and no later event would run it."""
    observer = scripted(begin=begin, on_rotated="exit 0")
    observer.observe([event(), event("github")])
    observer.close()
    (line,) = caplog.messages
    assert "linear: the hook on_rotated failed: cannot start /" in line
    assert "check its first line" in line
    assert hooks.failures == {"on_rotated": 2}


def test_a_program_without_a_path_is_found_on_absolute_places_only(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, the program of a hook would depend on the directory in which refresher was started."""
    scripted(on_rotated="exit 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".::{os.defpath}")
    settings = HookSettings(file=tmp_path / "config.toml", commands={"on_rotated": ("on_rotated",)}, timeout=30.0)
    with pytest.raises(ConfigError, match="there is no program on_rotated on PATH"):
        hooks.check(settings)
    monkeypatch.setenv("PATH", str(tmp_path))
    hooks.check(settings)


def test_a_stopped_process_ends_its_hook(scripted: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a hook would go on without a limit of time after the end of refresher."""
    observer = scripted(on_rotated='echo $$ >"$HOME/pid"; exec sleep 1000')
    observer.observe([event()])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", "it runs")
    observer.observe([event("github")])
    caplog.set_level(logging.WARNING)
    observer._hooks["on_rotated"]._end()
    observer.close()
    assert caplog.messages == [
        "linear: the hook on_rotated still runs, and is ended: refresher ends",
        "github: the hook on_rotated did not run: refresher ends",
    ]
