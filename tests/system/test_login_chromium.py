"""A login in a real browser."""

from pathlib import Path

from tests.conftest import need
from tests.support import chromium
from tests.support.browser import as_browser
from tests.support.command import Command, wait_until
from tests.support.mcp_login import MCPLogin


def test_a_real_browser_goes_all_the_way_and_says_that_one_is_logged_in(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a person would log in and be left before a blank page or an error."""
    need(chromium.missing())
    page = tmp_path / "page"
    with MCPLogin(consent="auto") as mcp:
        done = refresher("login", "linear", mcp.url, environment=as_browser("chromium", "--to", str(page)))
        assert done.code == 0, done.stderr
        assert mcp.seen() == {"registered": 1, "authorized": 1, "exchanged": 1}
        wait_until(lambda: page.is_file() and "</html>" in page.read_text(), "the browser has come back")
        assert "<h1>You are logged in</h1>" in page.read_text()
        assert refresher("run-once", "--force", "--json").outcome == "rotated"
        assert mcp.seen()["reused"] == 0
