"""The command at a terminal, as a person has it."""

import os
import pty
import subprocess
import sys
from contextlib import suppress

from tests.support.command import Command

__all__ = ["at_a_terminal", "read_until", "read_whole"]


def at_a_terminal(refresher: Command, *arguments: str, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command as a person does; return it and the other end of its terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "refresher", *arguments],
        env={**refresher.environment, **environment},
        cwd=refresher.home,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    return process, master


def read_until(master: int, words: str) -> str:
    """Return what it says up to some words."""
    said = b""
    while words.encode() not in said:
        part = os.read(master, 65536)
        assert part, said
        said += part
    return said.decode()


def read_whole(master: int) -> str:
    """Return what it says until it ends."""
    said = b""
    with suppress(OSError):  # how the end of a terminal is told
        while part := os.read(master, 65536):
            said += part
    os.close(master)
    return said.decode()
