"""Move in: the large programs log in, refresher imports the files that they wrote, and rotates at their server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.command import Command
from tests.support.kept_logins import PLACES, Programs, rotates
from tests.support.mcp_login import MCPLogin
from tests.support.program_logins import browser, log_in
from tests.support.program_stage import BIN, missing

_GEMINI = """
import * as core from "{chunk}";
const provider = new core.MCPOAuthProvider(new core.MCPOAuthTokenStorage());
await provider.authenticate("demo", {{enabled: true}}, "{url}");
process.exit(0);
"""
"""Gemini CLI logs in only from its screen; this is what the screen calls."""


@pytest.fixture(scope="module")
def server() -> Iterator[MCPLogin]:
    with MCPLogin(names_issuer=True) as running:
        yield running


@pytest.fixture
def programs(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"), refresher)


def _claude_code(home: Path, url: str, environment: dict[str, str]) -> None:
    claude = str(BIN / "claude")
    log_in([claude, "mcp", "add", "--transport", "http", "--scope", "user", "demo", url], home, environment)
    log_in([claude, "mcp", "login", "demo"], home, environment, terminal=True)


def _codex(home: Path, url: str, environment: dict[str, str]) -> None:
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").write_text('mcp_oauth_credentials_store = "file"\n')
    log_in([str(BIN / "codex"), "mcp", "add", "demo", "--url", url], home, environment)


def _opencode(home: Path, url: str, environment: dict[str, str]) -> None:
    (home / ".config/opencode").mkdir(parents=True)
    (home / ".config/opencode/opencode.json").write_text(f'{{"mcp": {{"demo": {{"type": "remote", "url": "{url}"}}}}}}')
    log_in([str(BIN / "opencode"), "mcp", "auth", "demo"], home, environment)


def _gemini_cli(home: Path, url: str, environment: dict[str, str]) -> None:
    bundle = BIN.parent / "@google/gemini-cli/bundle"
    chunk = next(path for path in bundle.glob("chunk-*.js") if "\n  MCPOAuthProvider,\n" in path.read_text())
    (home / "login.mjs").write_text(_GEMINI.format(chunk=chunk.resolve(), url=url))
    log_in([shutil.which("node") or "node", "login.mjs"], home, {**environment, "DISPLAY": ":0"})


@pytest.mark.parametrize(
    ("program", "package", "logs_in"),
    [
        ("claude-code", "@anthropic-ai/claude-code", _claude_code),
        ("codex", "@openai/codex", _codex),
        ("opencode", "opencode-ai", _opencode),
        ("gemini-cli", "@google/gemini-cli", _gemini_cli),
    ],
)
def test_a_real_login_moves_in(
    refresher: Command, programs: Programs, server: MCPLogin, program: str, package: str, logs_in: object
) -> None:
    """If it failed, the logins of today's version of this program could not move in."""
    need(missing(package))
    assert callable(logs_in)
    logs_in(programs.home, server.url, browser(programs.home / "bin"))
    assert (programs.home / PLACES[program]).is_file()
    done = programs.run("import", "linear", "--format", program, "--server", server.url)
    assert done.code == 0, done.stderr
    rotates(programs, refresher, "linear", server)
