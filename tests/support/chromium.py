"""Headless Chromium as a browser, for pages that need no input.

    python -m tests.support.chromium [--to FILE] URL

Prints the last page as HTML. At a server with ``consent="auto"`` the pages submit themselves.
"""

import argparse
import shutil
import subprocess
import tempfile
from typing import Final

from tests.support import browser

__all__ = ["main", "missing", "open_page"]

_LONGEST: Final = 90.0
# The virtual time for scripts and redirects.
_BUDGET_MS: Final = 20_000


def missing() -> str | None:
    """Return what must be installed to run it; ``None`` if nothing is missing."""
    return None if shutil.which("chromium") else "Chromium is not installed"


def open_page(url: str) -> str:
    """Return the last page as HTML."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", "--no-proxy-server"),
                *(f"--user-data-dir={profile}", f"--virtual-time-budget={_BUDGET_MS}", "--dump-dom", url),
            ],
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=True,
        )
    return done.stdout


def main() -> None:
    """Run the command."""
    browser.run(argparse.ArgumentParser(prog="chromium"), lambda given: open_page(given.url))


if __name__ == "__main__":
    main()
