"""Browsers for Python's ``webbrowser``, as commands in ``BROWSER``."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

__all__ = ["as_browser", "run"]


def as_browser(module: str, *options: str) -> dict[str, str]:
    """Return the environment in which ``webbrowser`` runs ``person`` or ``chromium``, and does not wait for it."""
    from tests.support.warm import stub  # the browser itself does not need it

    return {"BROWSER": f"{shlex.join(stub(f'tests.support.{module}', *options, '%s'))} &"}


def run(parser: argparse.ArgumentParser, open_page: Callable[[argparse.Namespace], str]) -> None:
    """Open a URL, and print the last page or write it to a file."""
    parser.add_argument("--to", type=Path)
    parser.add_argument("url")
    given = parser.parse_args()
    page = open_page(given)
    if given.to is None:
        print(page)
    else:
        given.to.write_text(page)
