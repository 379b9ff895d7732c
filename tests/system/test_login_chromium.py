"""Login in a real browser."""

from pathlib import Path

from tests.conftest import need
from tests.support import chromium
from tests.support.browser import as_browser
from tests.support.command import Command, wait_until
from tests.support.mcp_login import MCPLogin


def test_a_login_in_chromium_ends_at_the_success_page(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a successful login would end at a blank page or an error."""
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
