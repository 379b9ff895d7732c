"""``status --watch`` and ``status`` at a terminal, and the check for Nagios."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from refresher.grants.record import Failure, Grant, Login
from refresher.storage import records
from tests.support.cli import GRANT, one_line
from tests.support.command import Command
from tests.support.documents import ROOT
from tests.support.terminal import at_a_terminal, read_until, read_whole

FRESH = GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600}
ALT_SCREEN, NO_ALT_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
SHOW_CURSOR = "\x1b[?25h"
REJECTED = Failure(outcome="reauthorization_required", code="x", description="it is over", at=1.0, retry_at=None)


def change(refresher: Command, name: str, **changes: Any) -> None:
    """Change a record."""
    stored = records.load(refresher.directories, name)
    assert isinstance(stored.record, Grant)
    records.write(refresher.directories, name, stored, msgspec.structs.replace(stored.record, **changes))


@contextmanager
def watching(refresher: Command, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command at a terminal of 80 columns and 24 lines; it is killed if the test fails."""
    terminal = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment}
    process, master = at_a_terminal(refresher, "status", "--watch", *arguments, rows=24, **terminal)
    try:
        yield process, master
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_it_shows_changes_live_and_leaves_the_terminal_clean(refresher: Command) -> None:
    """If it failed, a person would look at old states, or have a broken terminal after Ctrl-C."""
    refresher.import_grant("linear", FRESH)
    with watching(refresher) as (process, master):
        before = read_until(master, "1 fresh")
        assert before.startswith(ALT_SCREEN)
        assert "32m" in before, "there are no colours"
        change(refresher, "linear", dead=True, failure=REJECTED)
        text = read_until(master, "refresher login linear")
        assert "1 needs a person" in text
        assert "it is over" in text

        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 120, 0, 0))
        read_until(master, "SERVER")

        refresher.vault.learn_from(refresher.state)
        assert refresher.vault.leaks_in(before + text) == []
        assert not termios.tcgetattr(master)[3] & termios.ECHO, "what is typed spoils the picture"
        os.write(master, b"\x03")
        read_until(master, NO_ALT_SCREEN)
        assert process.wait(60) == 0
        assert termios.tcgetattr(master)[3] & termios.ECHO
        os.close(master)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_signal_leaves_the_terminal_clean(refresher: Command, number: signal.Signals, code: int) -> None:
    """If it failed, a terminal would stay without a cursor when somebody stops the command from outside."""
    refresher.import_grant("linear", FRESH)
    with watching(refresher) as (process, master):
        read_until(master, "1 fresh")
        process.send_signal(number)
        rest = read_whole(master)
        assert SHOW_CURSOR in rest
        assert NO_ALT_SCREEN in rest
        assert process.wait(60) == code


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_there_are_no_colours_where_none_are_asked_for(refresher: Command, environment: dict[str, str]) -> None:
    """If it failed, a terminal without colours would show their codes as text."""
    refresher.import_grant("linear", FRESH)
    with watching(refresher, **environment) as (process, master):
        text = read_until(master, "mcp.example")
        change(refresher, "linear", dead=True, failure=REJECTED)
        text += read_until(master, "refresher login linear")
        assert not re.search(r"\x1b\[[\d;]*(?:3[0-7]|9[0-7])[;m]", text)
        if "TERM" in environment:
            assert "\x1b" not in text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        os.close(master)


def test_without_a_terminal_or_with_json_it_says_what_to_use(refresher: Command) -> None:
    """If it failed, a script would wait without an end, or get codes for a terminal."""
    refresher.import_grant("linear", FRESH)
    line = one_line(refresher("status", "--watch"))
    assert "needs a terminal" in line
    assert "'refresher status --json'" in line
    for option in ("--json", "--exit-code"):
        assert f"does not work with {option}" in one_line(refresher("status", "--watch", option))
    assert "no grant named 'nobody'" in one_line(refresher("status", "--watch", "nobody"))
    assert "no state directory" in one_line(refresher("status", "--watch", "--state-dir", "/nowhere/state"))


def test_only_watch_loads_the_library_that_draws(refresher: Command) -> None:
    """If it failed, each look at the status would take longer."""
    refresher.import_grant("linear", FRESH)
    done = refresher("status", environment={"PYTHONVERBOSE": "1"})
    assert not re.search(r"^import 'rich", done.stderr, re.MULTILINE)


def test_the_table_of_status_fits_a_terminal_and_is_whole_in_a_pipe(refresher: Command) -> None:
    """If it failed, a long error would spoil the table, or a script would get half of it."""
    refresher.import_grant("linear", FRESH)
    refresher.import_grant("notion", FRESH | {"refresh_token": "another-refresh-token"})
    long = "an error of many words " * 10
    change(refresher, "linear", failure=msgspec.structs.replace(REJECTED, description=long))
    assert long in refresher("status").stdout
    process, master = at_a_terminal(refresher, "status", rows=24, NO_COLOR="1")
    lines = read_whole(master).split("\r\n")
    assert process.wait(60) == 0
    assert any(line.endswith("...") for line in lines)
    assert [line for line in lines if len(line) > 80] == []
    process, master = at_a_terminal(refresher, "status", "linear", rows=24, NO_COLOR="1")
    assert long in read_whole(master), "a grant that is named is not shown whole"
    assert process.wait(60) == 0


def test_the_check_for_nagios(refresher: Command) -> None:
    """If it failed, a monitor would be green while a login is lost, or would show nothing that helps."""
    program = refresher.home / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m refresher "$@"\n')
    program.chmod(0o755)

    def check(*arguments: str, name: str = str(program)) -> tuple[int, str]:
        environment = refresher.environment | {"REFRESHER": name}
        command = ["sh", str(ROOT / "deploy/nagios/check_refresher"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert (done.stderr, done.stdout.count("\n")) == ("", 1)
        refresher.vault.learn_from(refresher.state)
        assert refresher.vault.leaks_in(done.stdout) == []
        return done.returncode, done.stdout.strip()

    assert check() == (0, "REFRESHER OK - there are no grants yet | grants=0 fresh=0 needs_person=0 failing=0 overdue=0 ending=0")  # fmt: skip
    for name in ("one", "two", "three", "four"):
        refresher.bring(name, FRESH | {"refresh_token": f"refresh-token-of-{name}"})
    assert check() == (0, "REFRESHER OK - 4 grants are fresh | grants=4 fresh=4 needs_person=0 failing=0 overdue=0 ending=0")  # fmt: skip
    assert check("one")[1].startswith("REFRESHER OK - 1 grant is fresh |")
    login = Login(client="registered", client_expires_at=time.time() + 86400)
    change(refresher, "four", login=login)
    assert check() == (1, "REFRESHER WARNING - four ends soon | grants=4 fresh=3 needs_person=0 failing=0 overdue=0 ending=1")  # fmt: skip
    spoof = '{"name": "x", "state": "reauthorization_required"} | x'
    transient = Failure(outcome="transient", code="x", description=spoof, at=time.time(), retry_at=time.time() + 100)
    change(refresher, "three", failure=transient)
    assert check() == (1, "REFRESHER WARNING - three fails, four ends soon | grants=4 fresh=2 needs_person=0 failing=1 overdue=0 ending=1")  # fmt: skip
    change(refresher, "two", dead=True, failure=REJECTED)
    assert check()[1].startswith("REFRESHER CRITICAL - two needs a login, three fails, four ends soon |")
    (refresher.state / "grants/one.json").write_bytes(b"")
    code, line = check()
    assert (code, "one has a bad grant file, two needs a login" in line) == (2, True)
    assert check("one")[0] == 2
    for arguments, words in ((("nobody",), "no grant named 'nobody'"), (("--bogus",), "--bogus")):
        code, line = check(*arguments)
        assert (code, line.startswith("REFRESHER UNKNOWN - "), words in line) == (3, True, True)
    code, line = check(name="/nowhere/refresher")
    assert (code, line.startswith("REFRESHER UNKNOWN - ")) == (3, True)
