"""The demo on a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import click
import pytest

from refresher.demo.screen import frame
from refresher.demo.timeline import PARTICIPANTS, AgentReport, Timeline
from tests.support.command import Command, wait_until
from tests.support.demo import Demo

COLUMNS, ROWS = 80, 24

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in Linux's /proc")


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
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # Linux reports the end of a terminal as an error
            while data := os.read(self._master, 65536):
                self._output += data

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def output(self) -> str:
        """Return everything written to the terminal."""
        return self._output.decode("utf-8", "replace")

    def finish(self) -> int:
        """Wait for the end of the process."""
        code = self.process.wait(90)
        self._reader.join(60)
        os.close(self._master)
        return code

    def lines(self) -> list[str]:
        """Return the lines of the terminal and its scrollback; none may be wider than the terminal."""
        lines, row, column = [""], 0, 0
        for control, text in re.findall(r"(\r|\n|\x1b\[\??[\d;]*[a-zA-Z])|([^\r\n\x1b]+)", self.output()):
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
    terminal = Terminal(refresher, temporary, "demo", "--seconds", "10")
    assert terminal.finish() == 0, terminal.output()
    lines = terminal.lines()
    assert [line.split()[0] for line in lines if "refresher demo" in line] == ["refresher"], (
        "it was drawn more than once"
    )
    block = "\n".join(lines)
    for words in (" of 0:10", "authorization server", "MCP server", "refresher run", "calls a tool all the time"):
        assert words in block
    heads, values = next((head, value) for head, value in pairwise(lines) if "calls failed" in head)
    ends = [match.end() for match in re.finditer(r"\S+ \S+|\S+", heads)]
    assert [value.split()[-1] for value in (values[:end] for end in ends[1:3])] == ["0", "1"], "failed, sessions"
    assert re.search(r"access token \d +[█░]+", block)
    assert "and not one call failed." in block
    assert "\x1b[3" in terminal.output(), "there are no colours"
    assert terminal.output().index("\x1b[?25l") < terminal.output().index("\x1b[?25h")
    assert "\x1b[?25l" not in terminal.output().partition("\x1b[?25h")[2]
    assert list(temporary.iterdir()) == []


def test_ctrl_c_ends_the_demo_in_order(refresher: Command, temporary: Path) -> None:
    """If it failed, Ctrl-C would leave processes or files, or a terminal without a cursor."""
    terminal = Terminal(refresher, temporary, "demo", NO_COLOR="1")
    wait_until(lambda: "starts to call" in terminal.output(), "the agent calls")
    one = Demo(refresher, temporary, terminal.process)
    assert one.has_begun()
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert re.search(r"Stopped after \d+ s: [\d,]+ calls in 1 MCP session, none failed\.", terminal.output())
    assert terminal.output().rindex("\x1b[?25h") > terminal.output().rindex("\x1b[?25l")
    assert not re.search(r"\x1b\[[\d;]*m", terminal.output()), "NO_COLOR was ignored"
    assert "Traceback" not in terminal.output()
    assert one.has_ended()
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
    expected = [event.text for event in timeline.events] + [*PARTICIPANTS.values()]
    assert [words for words in expected if not any(words in line for line in shown)] == []
    assert len(expected) == 11
    assert any(line.endswith("slowest call") for line in shown)
    assert max(len(click.unstyle(line)) for line in timeline.summary(stopped=False)) <= COLUMNS
    for height in (5, ROWS - 1, 60):
        for _ in range(60):
            timeline.note("an event" * 30, "plain")
        small = frame(timeline, 30, height)
        assert len(small) == height
        assert max(len(click.unstyle(line)) for line in small) <= 30
