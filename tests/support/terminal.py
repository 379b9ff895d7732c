"""The command at a terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from contextlib import suppress

from tests.support.command import LONGEST, Command

__all__ = ["at_a_terminal", "read_until", "read_whole"]


def at_a_terminal(
    refresher: Command, *arguments: str, rows: int = 0, **environment: str
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command at a new terminal of 80 columns; return the process and the other end of its terminal."""
    master, slave = pty.openpty()
    if rows:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
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
    """Return the output up to ``words``."""
    output = b""
    while words.encode() not in output:
        assert select.select([master], [], [], LONGEST)[0], f"{words!r} did not come: {output!r}"
        part = os.read(master, 65536)
        assert part, output
        output += part
    return output.decode()


def read_whole(master: int) -> str:
    """Return the output until the end."""
    output = b""
    with suppress(OSError):  # reading fails at the end of a terminal
        while part := os.read(master, 65536):
            output += part
    os.close(master)
    return output.decode()
