"""The demo for real: its own servers, daemon and agent, on a terminal and without one."""

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
from refresher.demo import summary
from refresher.demo.processes import environment
from refresher.demo.screen import frame
from refresher.demo.server import Strict
from refresher.demo.timeline import WIDEST, Participant, Timeline
from tests.support.command import Command, Done, wait_until

COLUMNS, ROWS = 80, 24

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in Linux's /proc")


class Running(NamedTuple):
    """A process that has not ended."""

    pid: int
    parent: int
    module: str


def running() -> Iterator[Running]:
    """Return the processes of this machine; what has ended and is not buried yet has ended all the same."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if state != "Z":
            yield Running(int(directory.name), int(parent), command[2] if "-m" in command[1:2] else "")


class Demo:
    """A demo under way, whose temporary directory and processes can be seen."""

    def __init__(self, refresher: Command, temporary: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pids: dict[str, int] = {}
        self.secrets: set[str] = set()
        self._refresher = refresher
        self._temporary = temporary
        self._said = ""

    def has_begun(self) -> bool:
        """Whether its server, daemon and agent run."""
        self.pids = {process.module: process.pid for process in running() if process.parent == self.process.pid}
        return len(self.pids) == 3

    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return not {self.process.pid, *self.pids.values()} & {process.pid for process in running()}

    def kill(self) -> None:
        """End what a demo that failed has left behind."""
        left = {process.pid for process in running()}
        for pid in left & set(self.pids.values()):
            os.kill(pid, signal.SIGKILL)

    def wait_for(self, words: str) -> None:
        """Read what it says until it says this."""
        assert self.process.stdout is not None
        while words not in self._said:
            # Not through the pipe's own buffer: what stays in there is lost to communicate().
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended without a word of {words!r}: {self._said}"
            self._said += data.decode()

    def grant(self) -> dict[str, str]:
        """Return the demo's private record."""
        [path] = self._temporary.glob("*/state/grants/demo.json")
        record: dict[str, str] = json.loads(path.read_bytes())["record"]
        return record

    def learn(self) -> None:
        """Learn the secrets that lie about at this moment."""
        for pattern in ("login.json", "state/grants/*", "state/tokens/*.json"):
            for path in self._temporary.glob(f"*/{pattern}"):
                with suppress(OSError, ValueError):
                    fields = json.loads(path.read_bytes().rstrip(b"\0"))
                    self._keep(fields.get("record", fields))

    def _keep(self, fields: dict[str, str | None]) -> None:
        found = (fields.get(key) for key in ("refresh_token", "access_token", "client_secret"))
        self.secrets |= {secret for secret in found if secret}

    def finish(self) -> Done:
        """Wait for its end, and see that it has printed no secret."""

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
    """Start demos of some seconds; at the end nothing of them may run."""
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


# --- as it should be ----------------------------------------------------------------------------------------------


def test_it_shows_all_that_it_promises_and_leaves_nothing_behind(
    demo: Callable[..., Demo], refresher: Command, temporary: Path
) -> None:
    """If it failed, the first thing that a person sees of the product would not work, or would touch what is theirs."""
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
    assert max(map(len, done.stdout.splitlines())) <= WIDEST
    assert done.stderr == ""
    assert len(one.secrets) >= 8, "too few secrets were seen for the search to mean anything"
    assert one.has_ended()
    assert list(temporary.iterdir()) == []
    assert sorted(refresher.home.iterdir()) == before


class Terminal:
    """A terminal of 80 columns and 24 lines, with its scrollback, and a process on it."""

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
        with suppress(OSError):  # how a terminal ends on Linux
            while data := os.read(self._master, 65536):
                self._said += data

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def said(self) -> str:
        """Return all that was written to it."""
        return self._said.decode("utf-8", "replace")

    def finish(self) -> int:
        """Wait for the end of the process."""
        code = self.process.wait(60)
        self._reader.join(10)
        os.close(self._master)
        return code

    def lines(self) -> list[str]:
        """Return what stands on it, scrollback and all; nothing may be wider than it is."""
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


def test_on_a_terminal_one_block_is_drawn_in_place(refresher: Command, temporary: Path) -> None:
    """If it failed, a person would see a torrent of half-drawn screens, or a terminal without a cursor."""
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


def test_what_it_says_fits_into_80_columns_and_24_lines() -> None:
    """If it failed, a usual terminal would cut off what a person is to read."""
    timeline = Timeline(3600, 10)
    timeline.participants = [
        Participant("authorization server", "http://127.0.0.1:65535", "a refresh token works once"),
        Participant("MCP server", "http://127.0.0.1:65535/mcp", "checks every call's token"),
        Participant("refresher run", "process 4194304", "refreshes, publishes tokens"),
        Participant("agent", "process 4194304", "calls a tool all the time"),
    ]
    timeline.on_token(98, 0.0)
    timeline.on_agent_report({"calls": 9_999_999, "failed": 0, "sessions": 1, "slowest": 12.0, "failure": ""})
    timeline.now = timeline.seconds
    timeline.on_token(99, 0.0)
    timeline.revoking = 99
    timeline.on_server_event("revoked", 0.0)
    timeline.on_server_event("refused", 1.0)
    timeline.on_token(100, 2.0)
    timeline.forcing = True
    timeline.on_token(101, 3.0)
    timeline.forced(101)
    assert timeline.missing() == []
    shown = [click.unstyle(line) for line in frame(timeline, COLUMNS, ROWS - 1)]
    wanted = [happening.text for happening in timeline.events] + [
        participant.does for participant in timeline.participants
    ]
    assert [words for words in wanted if not any(words in line for line in shown)] == []
    assert len(wanted) == 11
    assert any(line.endswith("slowest call") for line in shown)
    assert max(map(len, click.unstyle(summary.summarize(timeline, stopped=False)).splitlines())) <= COLUMNS
    for height in (5, ROWS - 1, 60):
        for _ in range(60):
            timeline.note("a happening" * 20, "plain")
        small = frame(timeline, 30, height)
        assert len(small) == height
        assert max(len(click.unstyle(line)) for line in small) <= 30


# --- cut short ----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_in_order(refresher: Command, temporary: Path) -> None:
    """If it failed, somebody who has seen enough would be left with processes, files or a terminal without a cursor."""
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


def test_a_signal_before_it_has_begun_ends_it_too(refresher: Command, temporary: Path) -> None:
    """If it failed, a demo that cannot begin could not be stopped either."""
    one = Demo(refresher, temporary, refresher.start("demo", environment={"TMPDIR": str(temporary)}))
    wait_until(lambda: not one.has_begun() and one.pids != {}, "its first process runs")
    one.process.send_signal(signal.SIGTERM)
    done = one.finish()
    assert done.code == 143, done.stdout + done.stderr
    assert "Stopped after 0 s" in done.stdout
    assert one.has_ended()
    assert list(temporary.iterdir()) == []


def test_when_it_is_killed_its_processes_end(demo: Callable[..., Demo]) -> None:
    """If it failed, a daemon would go on for ever behind a person's back."""
    one = demo(30)
    one.wait_for("starts to call")
    one.process.kill()
    one.process.wait()
    wait_until(one.has_ended, "nothing of it runs")
    one.process.communicate()


# --- what fails is told -------------------------------------------------------------------------------------------


def test_a_stolen_refresh_token_is_seen_and_explanation(demo: Callable[..., Demo]) -> None:
    """If it failed, the demo could not tell a working product from a broken one: its zeros would mean nothing."""
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
        ("refresher.demo.server", "the server died (killed by signal 9)"),
        ("refresher.demo.agent", "the agent died (killed by signal 9)"),
        ("refresher", "refresher run died (killed by signal 9)"),
    ],
)
def test_a_process_that_dies_ends_it_at_once_with_its_name(
    demo: Callable[..., Demo], temporary: Path, module: str, told: str
) -> None:
    """If it failed, a demo that shows nothing any more would go on, or would end as if all were well."""
    one = demo(3600)
    one.wait_for("starts to call")
    os.kill(one.pids[module], signal.SIGKILL)
    done = one.finish()
    assert done.code == 1, done.stdout
    assert "The demo failed" in done.stdout
    assert f"  - {told}" in done.stdout
    assert list(temporary.iterdir()) == []


def test_its_server_punishes_reuse_and_revokes_one_token_at_a_time() -> None:
    """If it failed, the demo would be easier than the world: a product that reuses a refresh token would pass."""

    async def run() -> None:
        server = Strict("http://127.0.0.1:1/mcp", 60)
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


def test_what_was_not_seen_did_not_work() -> None:
    """If it failed, a demo in which nothing happened would count as a success."""
    timeline = Timeline(30, 10)
    assert len(summary.problems(timeline, stopped=False)) == 3
    assert summary.problems(timeline, stopped=True) == []
    timeline.on_agent_report({"calls": 5, "failed": 0, "sessions": 2, "slowest": 0.1, "failure": ""})
    assert summary.problems(timeline, stopped=True) == ["the agent lost its session and opened 2"]


def test_its_processes_know_nothing_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it failed, a demo could show, or change, what a person really has."""
    monkeypatch.setenv("KEPT", "1")
    for name in ("REFRESHER_CONFIG", "REFRESHER_STATE_DIR", "https_proxy", "ALL_PROXY", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "/the/users/own")
    given = environment(tmp_path)
    assert "/the/users/own" not in given.values()
    assert given["KEPT"] == "1"
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "REFRESHER_STATE_DIR", "REFRESHER_SPILL_DIR"):
        assert Path(given[name]).is_relative_to(tmp_path)


def test_without_the_mcp_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a first user who has installed the service alone would get a traceback."""
    monkeypatch.setattr(cli_demo, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"the demo needs the MCP SDK: .*pip install '\.\[all\]'"):
        cli.main(["demo", "--seconds", "5"], standalone_mode=False)


def test_importing_it_costs_little() -> None:
    """If it failed, every command would pay for the demo."""
    code = "import sys, refresher.cli.demo; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mcp", "httpx", "httpx2", "uvicorn", "anyio"} & set(loaded)
