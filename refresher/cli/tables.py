"""Prints rows about grants: as a table for a person, as JSON for a program."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import click

from refresher.common.errors import DirectoryError
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.operations.result import EXIT_CODES

__all__ = ["print_rows"]

_COLOURS_OF_CODES = {0: "green", 4: "yellow", 6: "yellow", 5: "magenta", 3: "red", 2: "red", 130: "yellow"}
_COLOURS = {"active": "green", "failing": "yellow"} | {key: _COLOURS_OF_CODES[code] for key, code in EXIT_CODES.items()}


def print_rows(
    settings: Settings,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    as_json: Any,
    output: Callable[[str], None] = say,
    *,
    warned: Collection[str] = (),
) -> None:
    """Print ``as_json``, or a table of ``rows`` if that is ``None``; say that there are no grants if there are no rows.

    ``warned``: the names whose rows are not green.

    Raises ``DirectoryError`` if there are none because the state directory was named and does not exist.
    """
    directories = settings.directories
    if not rows and settings.state_given and not directories.state.exists():
        raise DirectoryError(f"there is no state directory {directories.state}; 'refresher login' creates it")
    if not rows:
        say(f"no grants in {directories.grants} yet; begin with 'refresher login NAME URL'", err=True)
    if as_json is not None:
        output(json.dumps(as_json))
    elif rows:
        output(_table(head, rows, warned))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], warned: Collection[str]) -> str:
    """Return rows below a bold head; the word in the second column has its colour."""
    *widths, _ = (max(map(len, column)) for column in zip(head, *rows, strict=True))
    # Each cell is padded first, because a colour makes a word longer than it looks.
    titles, *lines = [[*map(str.ljust, row, (*widths, 0))] for row in (head, *rows)]
    for line, row in zip(lines, rows, strict=True):
        line[1] = click.style(
            line[1], fg="yellow" if row[0] in warned and _COLOURS[row[1]] == "green" else _COLOURS[row[1]]
        )
    return "\n".join(map("  ".join, ([click.style(title, bold=True) for title in titles], *lines)))
