"""The whole demo: its servers, daemon and agent, on a terminal and without one."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import anyio
import click
import httpx
import pytest
from mcp.shared.auth import OAuthToken

from refresher.cli import demo as cli_demo
from refresher.cli.main import cli
from refresher.common.errors import ConfigError
from refresher.demo.processes import environment
from refresher.demo.screen import frame
from refresher.demo.server import StrictProvider
from refresher.demo.timeline import MAX_WIDTH, PARTICIPANTS, AgentReport, Timeline
from tests.support.command import Command, Done, wait_until

COLUMNS, ROWS = 80, 24

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in Linux's /proc")


class Running(NamedTuple):
    """A process that runs."""

    pid: int
    parent: int
    module: str


def running() -> Iterator[Running]:
    """Yield the processes of this machine, without zombies."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if state != "Z":
            yield Running(int(directory.name), int(parent), command[2] if "-m" in command[1:2] else "")


class Demo:
    """A running demo, with its temporary directory and processes."""

    def __init__(self, refresher: Command, temporary: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pids: dict[str, int] = {}
        self.secrets: set[str] = set()
        self._refresher = refresher
        self._temporary = temporary
        self._said = ""

    def has_begun(self) -> bool:
        """Whether the server, the daemon and the agent run."""
        self.pids = {process.module: process.pid for process in running() if process.parent == self.process.pid}
        return len(self.pids) == 3

    def has_ended(self) -> bool:
        """Whether all processes of the demo have ended."""
        return not {self.process.pid, *self.pids.values()} & {process.pid for process in running()}

    def kill(self) -> None:
        """Kill the processes that a failed demo left behind."""
        left = {process.pid for process in running()}
        for pid in left & set(self.pids.values()):
            os.kill(pid, signal.SIGKILL)

    def wait_for(self, words: str) -> None:
        """Read the output until it contains ``words``."""
        assert self.process.stdout is not None
        while words not in self._said:
            # Not through the buffer of the pipe: communicate() does not return what the buffer holds.
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended without a word of {words!r}: {self._said}"
            self._said += data.decode()

    def grant(self) -> dict[str, str]:
        """Return the private record of the demo."""
        [path] = self._temporary.glob("*/state/grants/demo.json")
        record: dict[str, str] = json.loads(path.read_bytes())["record"]
        return record

    def learn(self) -> None:
        """Add the secrets that are in files now."""
        for pattern in ("login.json", "state/grants/*", "state/tokens/*.json"):
            for path in self._temporary.glob(f"*/{pattern}"):
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

        wait_until(has_ended, "the demo ends", longest=90)
        self._refresher.vault.learn(*self.secrets)
        done = self._refresher.finish(self.process)
        assert not self._refresher.vault.leaks_in(self._said)
        return done._replace(stdout=self._said + done.stdout)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A directory for temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def demo(refresher: Command, temporary: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; at the end of the test none of their processes may run."""
    started: list[Demo] = []

    def start(seconds: int, **environment: str) -> Demo:
        more = {"TMPDIR": str(temporary), **environment}
        one = Demo(refresher, temporary, refresher.start("demo", "--seconds", str(seconds), environment=more))
        started.append(one)
        wait_until(lambda: one.has_begun() or one.process.poll() is not None, "all its processes run")
        return one

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.communicate()
        try:
            wait_until(one.has_ended, "the demo's processes have ended")
        finally:
            one.kill()


# --- a whole demo --------------------------------------------------------------------------------------------------


def test_the_demo_shows_each_kind_of_rotation_and_leaves_nothing_behind(
    demo: Callable[..., Demo], refresher: Command, temporary: Path
) -> None:
    """If it failed, the first command a user tries would not work, or would touch the files of the user."""
    for name in ("mcp", "httpx2", "uvicorn"):
        (refresher.home / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    before = sorted(refresher.home.iterdir())
    one = demo(
        8,
        REFRESHER_STATE_DIR=str(refresher.home / "state"),
        REFRESHER_TOKENS_GROUP="no such group",
        HTTP_PROXY="http://127.0.0.1:9",
        ALL_PROXY="http://127.0.0.1:9",
    )
    done = one.finish()
    assert done.code == 0, done.stdout + done.stderr
    assert re.search(r"^[\d,]{3,} calls in 1 MCP session, and not one call failed\.$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +[1-9]  on schedule", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1  after it was revoked", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1  by 'refresher run-once --force' from another process$", done.stdout, re.MULTILINE)
    assert "Refresh tokens sent twice: 0. MCP sessions lost: 0." in done.stdout
    assert "the MCP server refuses it (401)" in done.stdout
    assert "\x1b" not in done.stdout, "what is no terminal gets no colours"
    assert max(map(len, done.stdout.splitlines())) <= MAX_WIDTH
    assert done.stderr == ""
    assert len(one.secrets) >= 8, "too few secrets were seen for the search to mean anything"
    assert one.has_ended()
    assert list(temporary.iterdir()) == []
    assert sorted(refresher.home.iterdir()) == before


class Terminal:
    """A process on a terminal of 80 columns and 24 lines with scrollback."""

    def __init__(self, refresher: Command, temporary: Path, *arguments: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "refresher", *arguments],
            env={**refresher.environment, "TMPDIR": str(temporary), "TERM": "xterm", **environment},
            cwd=refresher.home,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            text=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # Linux reports the end of a terminal as an error
            while data := os.read(self._master, 65536):
                self._said += data

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def said(self) -> str:
        """Return everything written to the terminal."""
        return self._said.decode("utf-8", "replace")

    def finish(self) -> int:
        """Wait for the end of the process."""
        code = self.process.wait(60)
        self._reader.join(10)
        os.close(self._master)
        return code

    def lines(self) -> list[str]:
        """Return the lines of the terminal and its scrollback; none may be wider than the terminal."""
        lines, row, column = [""], 0, 0
        for control, text in re.findall(r"(\r|\n|\x1b\[\??[\d;]*[a-zA-Z])|([^\r\n\x1b]+)", self.said()):
            if text:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
                assert column <= COLUMNS, f"too wide: {lines[row]!r}"
            elif control == "\r":
                column = 0
            elif control == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif control.endswith("A"):
                row -= int(control[2:-1])
                assert row >= max(len(lines) - ROWS, 0), "it moved up beyond what can be seen"
            elif control.endswith("K"):
                lines[row] = lines[row][:column]
            else:
                assert control[-1] in "mhl", f"unexpected {control!r}"
        return [line.rstrip() for line in lines]


def test_on_a_terminal_the_demo_redraws_one_block(refresher: Command, temporary: Path) -> None:
    """If it failed, the demo would fill the terminal with partial blocks, or leave it without a cursor."""
    terminal = Terminal(refresher, temporary, "demo", "--seconds", "5")
    assert terminal.finish() == 0, terminal.said()
    lines = terminal.lines()
    assert [line.split()[0] for line in lines if "refresher demo" in line] == ["refresher"], (
        "it was drawn more than once"
    )
    block = "\n".join(lines)
    for words in (" of 0:05", "authorization server", "MCP server", "refresher run", "calls a tool all the time"):
        assert words in block
    heads, values = next((head, value) for head, value in pairwise(lines) if "calls failed" in head)
    ends = [match.end() for match in re.finditer(r"\S+ \S+|\S+", heads)]
    assert [value.split()[-1] for value in (values[:end] for end in ends[1:3])] == ["0", "1"], "failed, sessions"
    assert re.search(r"access token \d +[█░]+", block)
    assert "and not one call failed." in block
    assert "\x1b[3" in terminal.said(), "a terminal gets colours"
    assert terminal.said().index("\x1b[?25l") < terminal.said().index("\x1b[?25h")
    assert "\x1b[?25l" not in terminal.said().partition("\x1b[?25h")[2]
    assert list(temporary.iterdir()) == []


def test_the_block_fits_into_80_columns_and_24_lines() -> None:
    """If it failed, a terminal of the usual size would cut off text."""
    timeline = Timeline(3600, 10)
    servers = {"authorization server": "http://127.0.0.1:65535", "MCP server": "http://127.0.0.1:65535/mcp"}
    timeline.addresses = servers | {"refresher run": "process 4194304", "agent": "process 4194304"}
    timeline.on_token(98, 0.0)
    timeline.on_agent_report(AgentReport(calls=9_999_999, sessions=1, slowest=12.0))
    timeline.now = timeline.seconds
    timeline.on_token(99, 0.0)
    timeline.revoking = 99
    timeline.on_server_event("revoked", 0.0)
    timeline.on_server_event("refused", 1.0)
    timeline.on_token(100, 2.0)
    timeline.forcing = True
    timeline.on_token(101, 3.0)
    timeline.on_forced(101)
    assert timeline.missing() == []
    shown = [click.unstyle(line) for line in frame(timeline, COLUMNS, ROWS - 1)]
    wanted = [event.text for event in timeline.events] + [*PARTICIPANTS.values()]
    assert [words for words in wanted if not any(words in line for line in shown)] == []
    assert len(wanted) == 11
    assert any(line.endswith("slowest call") for line in shown)
    assert max(len(click.unstyle(line)) for line in timeline.summary(stopped=False)) <= COLUMNS
    for height in (5, ROWS - 1, 60):
        for _ in range(60):
            timeline.note("an event" * 30, "plain")
        small = frame(timeline, 30, height)
        assert len(small) == height
        assert max(len(click.unstyle(line)) for line in small) <= 30


# --- an early end --------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_demo_in_order(refresher: Command, temporary: Path) -> None:
    """If it failed, Ctrl-C would leave processes or files, or a terminal without a cursor."""
    terminal = Terminal(refresher, temporary, "demo", NO_COLOR="1")
    wait_until(lambda: "starts to call" in terminal.said(), "the agent calls")
    one = Demo(refresher, temporary, terminal.process)
    assert one.has_begun()
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert re.search(r"Stopped after \d+ s: [\d,]+ calls in 1 MCP session, none failed\.", terminal.said())
    assert terminal.said().rindex("\x1b[?25h") > terminal.said().rindex("\x1b[?25l")
    assert not re.search(r"\x1b\[[\d;]*m", terminal.said()), "NO_COLOR asks for none"
    assert "Traceback" not in terminal.said()
    assert one.has_ended()
    assert list(temporary.iterdir()) == []


def test_a_signal_ends_the_demo_before_its_first_call(refresher: Command, temporary: Path) -> None:
    """If it failed, a demo that hangs at its start could not be stopped."""
    one = Demo(refresher, temporary, refresher.start("demo", environment={"TMPDIR": str(temporary)}))
    wait_until(lambda: not one.has_begun() and one.pids != {}, "its first process runs")
    one.process.send_signal(signal.SIGTERM)
    done = one.finish()
    assert done.code == 143, done.stdout + done.stderr
    assert "Stopped after 0 s" in done.stdout
    assert one.has_ended()
    assert list(temporary.iterdir()) == []


def test_the_processes_of_a_killed_demo_end(demo: Callable[..., Demo]) -> None:
    """If it failed, a killed demo would leave a daemon that runs for ever."""
    one = demo(30)
    one.wait_for("starts to call")
    one.process.kill()
    one.process.wait()
    wait_until(one.has_ended, "nothing of it runs")
    one.process.communicate()


# --- failures ------------------------------------------------------------------------------------------------------


def test_the_demo_reports_a_stolen_refresh_token(demo: Callable[..., Demo]) -> None:
    """If it failed, the demo would report success for a product that does not work."""
    one = demo(5)
    one.wait_for("starts to call")
    grant = one.grant()
    fields = {key: grant[key] for key in ("client_id", "client_secret", "refresh_token", "resource")}
    one.learn()
    httpx.post(grant["token_endpoint"], data={"grant_type": "refresh_token", **fields}, trust_env=False)
    done = one.finish()
    assert done.code == 1, done.stdout
    told = " ".join(done.stdout.split())
    assert re.search(r"The demo failed \([\d,]+ calls in 1 MCP session\):", done.stdout)
    assert re.search(r"- [\d,]+ of [\d,]+ calls failed; the last: .*needs a new login by a person", told)
    assert re.search(r"- refresh tokens sent twice: [1-9]", done.stdout)
    assert "not one call failed" not in done.stdout
    assert "a call failed: " in done.stdout


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("refresher.demo.server", "the server ended unexpectedly (killed by signal 9)"),
        ("refresher.demo.agent", "the agent ended unexpectedly (killed by signal 9)"),
        ("refresher", "refresher run ended unexpectedly (killed by signal 9)"),
    ],
)
def test_a_process_that_ends_unexpectedly_ends_the_demo(
    demo: Callable[..., Demo], temporary: Path, module: str, told: str
) -> None:
    """If it failed, the demo would run on without one of its processes, or report success."""
    one = demo(3600)
    one.wait_for("starts to call")
    os.kill(one.pids[module], signal.SIGKILL)
    done = one.finish()
    assert done.code == 1, done.stdout
    assert "The demo failed" in done.stdout
    assert f"  - {told}" in done.stdout
    assert list(temporary.iterdir()) == []


def test_the_server_revokes_the_login_on_reuse_and_otherwise_one_token() -> None:
    """If it failed, a product that sends a refresh token twice would pass the demo."""

    async def run() -> None:
        server = StrictProvider("http://127.0.0.1:1/mcp", 60)  # type: ignore[abstract]
        login = server.log_in()
        client = await server.get_client(str(login["client_id"]))
        assert client is not None

        async def rotate(refresh_token: str | None) -> OAuthToken:
            found = await server.load_refresh_token(client, str(refresh_token))
            assert found is not None
            return await server.exchange_refresh_token(client, found, [])

        first = await rotate(login["refresh_token"])
        second = await rotate(first.refresh_token)
        revoked = await server.load_access_token(first.access_token)
        assert revoked is not None
        await server.revoke_token(revoked)
        assert await server.load_access_token(first.access_token) is None
        assert await server.load_access_token(second.access_token) is not None
        third = await rotate(second.refresh_token)
        assert await server.load_refresh_token(client, str(first.refresh_token)) is None, "it was taken twice"
        assert await server.load_access_token(third.access_token) is None
        assert await server.load_refresh_token(client, str(third.refresh_token)) is None

    anyio.run(run)


def test_a_demo_without_a_planned_rotation_fails() -> None:
    """If it failed, a demo in which nothing happens would report success."""
    timeline = Timeline(30, 10)
    assert len(timeline.problems(stopped=False)) == 3
    assert timeline.problems(stopped=True) == []
    timeline.on_agent_report(AgentReport(calls=5, sessions=2, slowest=0.1))
    assert timeline.problems(stopped=True) == ["the agent lost its session and opened 2"]


def test_the_processes_use_no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it failed, the demo could read or change the grants of the user."""
    monkeypatch.setenv("KEPT", "1")
    for name in ("REFRESHER_CONFIG", "REFRESHER_STATE_DIR", "https_proxy", "ALL_PROXY", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "/the/users/own")
    given = environment(tmp_path)
    assert "/the/users/own" not in given.values()
    assert given["KEPT"] == "1"
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "REFRESHER_STATE_DIR", "REFRESHER_SPILL_DIR"):
        assert Path(given[name]).is_relative_to(tmp_path)


def test_without_the_mcp_sdk_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a user who installed only the service would get a traceback."""
    monkeypatch.setattr(cli_demo, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"the demo needs the MCP SDK: .*pip install '\.\[all\]'"):
        cli.main(["demo", "--seconds", "5"], standalone_mode=False)


def test_the_command_is_cheap_to_import() -> None:
    """If it failed, each command would load the libraries of the demo."""
    code = "import sys, refresher.cli.demo; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mcp", "httpx", "httpx2", "uvicorn", "anyio"} & set(loaded)
