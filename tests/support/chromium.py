"""Chromium without a screen, as the browser of a person who has nothing to type.

    python -m tests.support.chromium [--to FILE] URL

Prints the page where it ends as HTML. Pages that press their own buttons (``auto``) carry it through a login.
"""

import argparse
import shutil
import subprocess
import tempfile
from typing import Final

from tests.support import browser

__all__ = ["main", "missing", "open_page"]

_LONGEST: Final = 60.0
# Scripts and redirects may take this much of the page's own time.
_BUDGET_MS: Final = 20_000


def missing() -> str | None:
    """Return what is needed to run it here, ``None`` if nothing."""
    return None if shutil.which("chromium") else "Chromium is not installed"


def open_page(url: str) -> str:
    """Return the page where it ends."""
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
