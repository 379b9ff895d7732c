"""Talking to a person: lines that nobody may be there to read, and what a run is waiting for."""

import os
import sys
import time
from contextlib import suppress
from typing import Final, TextIO

import click

from refresher.common import text

__all__ = ["Progress", "flush", "say"]

_WORTH_TELLING: Final = 1.0


def say(text: str, *, err: bool = False) -> None:
    """Print; that nobody can read it any more changes neither what was done nor the exit code."""
    try:
        click.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)
    except (OSError, ValueError):
        _silence(sys.stderr if err else sys.stdout)


def flush() -> None:
    """Write out what is buffered, before Python does it at exit and ends with 120 where it cannot."""
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
    """Tells a person at a terminal what a run is waiting for, once it takes longer than a second."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told: list[str] = []

    def __call__(self, names: list[str]) -> None:
        """Hear which names are under way."""
        if names != self._told and time.monotonic() - self._began > _WORTH_TELLING and sys.stderr.isatty():
            self._told = names
            say(f"refresher: waiting for {text.names(names)}", err=True)
