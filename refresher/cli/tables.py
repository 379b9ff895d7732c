"""Prints rows about grants: as a table for a person, as JSON for a program."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import click

from refresher.common.errors import DirectoryError
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.operations.result import EXIT_CODES

__all__ = ["check_state", "print_rows"]

_LEAST: Final = 20
"""Characters of the last cell that are shown in any case."""

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
    width: int | None = None,
    hint: bool = True,
) -> None:
    """Print ``as_json``, or a table of ``rows`` if that is ``None``; say that there are no grants if there are no rows.

    ``hint``: whether to say so. ``warned``: the names whose rows are not green. ``width``: how many characters a
    row may have; the last cell is cut.

    Raises ``DirectoryError`` if there are none because the state directory was named and does not exist.
    """
    if not rows and hint:
        check_state(settings)
        say(f"no grants in {settings.open_store().place} yet; begin with 'refresher login NAME URL'", err=True)
    if as_json is not None:
        output(json.dumps(as_json))
    elif rows:
        output(_table(head, rows, warned, width))


def check_state(settings: Settings) -> None:
    """Raise ``DirectoryError`` if the state directory was named and does not exist."""
    state = settings.directories.state
    if settings.state_given and settings.store is None and not state.exists():
        raise DirectoryError(f"there is no state directory {state}; 'refresher login' creates it")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], warned: Collection[str], width: int | None) -> str:
    """Return rows below a bold head; the word in the second column has its colour."""
    *widths, _ = (max(map(len, column)) for column in zip(head, *rows, strict=True))
    if width is not None:
        room = max(width - sum(widths) - 2 * len(widths), _LEAST)
        rows = [(*row[:-1], row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 3]}...") for row in rows]
    # Each cell is padded first, because a colour makes a word longer than it looks.
    titles, *lines = [[*map(str.ljust, row, (*widths, 0))] for row in (head, *rows)]
    for line, row in zip(lines, rows, strict=True):
        line[1] = click.style(
            line[1], fg="yellow" if row[0] in warned and _COLOURS[row[1]] == "green" else _COLOURS[row[1]]
        )
    return "\n".join(map("  ".join, ([click.style(title, bold=True) for title in titles], *lines)))
