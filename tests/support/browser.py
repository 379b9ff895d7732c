"""Browsers as commands, put where Python's ``webbrowser`` looks for one."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

__all__ = ["as_browser", "run"]


def as_browser(module: str, *options: str) -> dict[str, str]:
    """Return the environment in which ``webbrowser`` opens addresses by ``person`` or ``chromium``, and does not wait."""
    from tests.support.warm import stub  # the browser itself does not need it

    return {"BROWSER": f"{shlex.join(stub(f'tests.support.{module}', *options, '%s'))} &"}


def run(parser: argparse.ArgumentParser, look: Callable[[argparse.Namespace], str]) -> None:
    """Open an address, and print the page where it ends, or write it to a file."""
    parser.add_argument("--to", type=Path)
    parser.add_argument("url")
    given = parser.parse_args()
    page = look(given)
    if given.to is None:
        print(page)
    else:
        given.to.write_text(page)
