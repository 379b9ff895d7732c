"""Move in: real programs log in, refresher imports the files that they wrote, and rotates at their server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support import fastmcp_login
from tests.support.cli import one_line
from tests.support.command import Command
from tests.support.kept_logins import PLACES, Programs, rotates
from tests.support.mcp_login import MCPLogin
from tests.support.program_logins import browser, log_in

_ROOT = Path(__file__).parent.parent.parent
_MCP_REMOTE = _ROOT / "tests/servers/node_modules/.bin/mcp-remote-client"


@pytest.fixture(scope="module")
def server() -> Iterator[MCPLogin]:
    with MCPLogin() as running:
        yield running


@pytest.fixture
def programs(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"), refresher)


def test_mcp_remote(refresher: Command, programs: Programs, server: MCPLogin) -> None:
    """If it failed, the logins of today's mcp-remote could not move in."""
    need(None if _MCP_REMOTE.exists() else "mcp-remote is not installed: (cd tests/servers && npm ci)")
    place = programs.home / PLACES["mcp-remote"]
    environment = browser(programs.home / "bin")
    log_in([str(_MCP_REMOTE), server.url], programs.home, environment, until=lambda: any(place.glob("*_tokens.json")))
    done = programs.run("import", "linear", "--format", "mcp-remote", "--server", server.url)
    assert done.code == 0, done.stderr
    rotates(programs, refresher, "linear", server)


def test_fastmcp(refresher: Command, programs: Programs, server: MCPLogin) -> None:
    """If it failed, the logins of today's FastMCP could not move in."""
    need(fastmcp_login.missing())
    command = [str(_ROOT / ".venv/fastmcp/bin/python"), "-m", "tests.servers.fastmcp_client", server.url, "store"]
    log_in(command, programs.home, {**browser(programs.home / "bin"), "PYTHONPATH": str(_ROOT)})
    done = programs.run("import", "linear", "--file", str(programs.home / "store"), "--server", server.url)
    assert done.code == 0, done.stderr
    assert (refresher.grant("linear").expires_at or 0) > refresher.grant("linear").issued_at
    rotates(programs, refresher, "linear", server)


@pytest.mark.parametrize(("shape", "file"), [("one", "oauth.json"), ("two", "tokens.json")])
def test_mcp_sdk(refresher: Command, programs: Programs, server: MCPLogin, shape: str, file: str) -> None:
    """If it failed, what programs keep with the models of the SDK could not move in."""
    command = [sys.executable, "-m", "tests.servers.sdk_client", server.url, str(programs.home), shape]
    log_in(command, programs.home, {"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"})
    there = ("--file", str(programs.home / file))
    assert "give its address with --server" in one_line(programs.run("import", "linear", *there))
    done = programs.run("import", "linear", *there, "--server", server.url)
    assert done.code == 0, done.stderr
    assert "delete that file" in done.stdout
    rotates(programs, refresher, "linear", server)
