"""Programs of others log in by themselves, at a server that approves at once; a script stands for the browser."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.command import wait_until

__all__ = ["LONGEST", "browser", "log_in"]

LONGEST: Final = 120.0

_OPENERS: Final = ("browser", "xdg-open", "open", "x-www-browser", "sensible-browser")
# A program may open the browser before it listens: a person is slower.
_SCRIPT: Final = """#!/bin/sh
for url; do :; done
curl --silent --location --retry 60 --retry-connrefused --retry-delay 1 --max-time 60 --output /dev/null "$url" \\
  >/dev/null 2>&1 </dev/null &
"""


def browser(directory: Path) -> dict[str, str]:
    """Return the environment in which a program opens this browser."""
    directory.mkdir()
    for name in _OPENERS:
        (directory / name).write_text(_SCRIPT)
        (directory / name).chmod(0o755)
    return {
        "PATH": f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BROWSER": str(directory / "browser"),
        "NO_PROXY": "127.0.0.1,localhost",
        "TERM": "dumb",
    }


def log_in(
    command: Sequence[str],
    home: Path,
    environment: Mapping[str, str],
    *,
    terminal: bool = False,
    until: Callable[[], bool] | None = None,
) -> None:
    """Run a program in ``home`` until it has logged in, and ended.

    ``terminal``: it demands one. ``until``: it has logged in when this is so, and ends when its standard input ends.
    """
    answers, master = subprocess.PIPE, -1
    if terminal:
        master, answers = pty.openpty()
    try:
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=home,
                env={**environment, "HOME": str(home)},
                stdin=answers,
                stdout=answers if terminal else log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if terminal:
                os.close(answers)
                _drain(master, home / "log")
            elif process.stdin is not None:
                process.stdin.write(b"y\n")  # the question of Gemini CLI
                process.stdin.flush()
                if until is not None:
                    wait_until(until, f"{command[0]} has logged in")
                    process.stdin.close()
            code = process.wait(LONGEST)
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    finally:
        if master >= 0:
            os.close(master)
    assert code == 0, (home / "log").read_text(errors="replace")


def _drain(master: int, log: Path) -> None:
    """Keep what a program writes to its terminal, until it closes it."""
    with log.open("ab") as file:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return  # the program has ended
            if not data:
                return
            file.write(data)
