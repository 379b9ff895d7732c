"""Lines for a person; standard output may be closed or stalled."""

import os
import sys
import time
from contextlib import suppress
from typing import Final, TextIO

import click

from refresher.common import text

__all__ = ["Progress", "flush", "say", "show"]

_SILENT_SECONDS: Final = 1.0


def say(text: str, *, err: bool = False) -> None:
    """Print a text; an output that cannot be written changes neither what was done nor the exit code."""
    stream = sys.stderr if err else sys.stdout
    try:
        _print(text, stream)
    except (OSError, ValueError):
        _silence(stream)


def show(text: str) -> None:
    """Print the text that a command is for. Raises ``OSError`` if it cannot be written."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    # The stream itself: click would write UTF-8 to an ASCII terminal.
    click.echo(text, file=stream, color=False if os.environ.get("NO_COLOR") else None)
    stream.flush()


def flush() -> None:
    """Write out what is buffered. Python would do it at exit, and exit with 120 if it could not."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def _silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Progress:
    """Shows at a terminal which grants a run waits for, once that takes more than a second."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown: list[str] = []

    def __call__(self, names: list[str]) -> None:
        """Take the names that are in progress."""
        if names != self._shown and time.monotonic() - self._began > _SILENT_SECONDS and sys.stderr.isatty():
            self._shown = names
            say(f"refresher: waiting for {text.names(names)}", err=True)
