"""Parts of the demo, each without its processes."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from mcp.shared.auth import OAuthToken

from refresher.cli import demo as cli_demo
from refresher.cli.main import cli
from refresher.common.errors import ConfigError
from refresher.demo.processes import environment
from refresher.demo.server import StrictProvider
from refresher.demo.timeline import AgentReport, Timeline


def test_the_server_revokes_the_login_on_reuse_and_otherwise_one_token() -> None:
    """If it failed, a product that sends a refresh token twice would pass the demo."""

    async def run() -> None:
        server = StrictProvider("http://127.0.0.1:1/mcp", 60)  # type: ignore[abstract]
        login = server.log_in()
        client = await server.get_client(str(login["client_id"]))
        assert client is not None

        async def rotate(refresh_token: str | None) -> OAuthToken:
            found = await server.load_refresh_token(client, str(refresh_token))
            assert found is not None
            return await server.exchange_refresh_token(client, found, [])

        first = await rotate(login["refresh_token"])
        second = await rotate(first.refresh_token)
        revoked = await server.load_access_token(first.access_token)
        assert revoked is not None
        await server.revoke_token(revoked)
        assert await server.load_access_token(first.access_token) is None
        assert await server.load_access_token(second.access_token) is not None
        third = await rotate(second.refresh_token)
        assert await server.load_refresh_token(client, str(first.refresh_token)) is None, "it was accepted twice"
        assert await server.load_access_token(third.access_token) is None
        assert await server.load_refresh_token(client, str(third.refresh_token)) is None

    anyio.run(run)


def test_a_demo_without_a_planned_rotation_fails() -> None:
    """If it failed, a demo in which nothing happens would report success."""
    timeline = Timeline(30, 10)
    assert len(timeline.problems(stopped=False)) == 3
    assert timeline.problems(stopped=True) == []
    timeline.on_agent_report(AgentReport(calls=5, sessions=2, slowest=0.1))
    assert timeline.problems(stopped=True) == ["the agent lost its session and opened 2"]


def test_the_processes_use_no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it failed, the demo could read or change the grants of the user."""
    monkeypatch.setenv("KEPT", "1")
    for name in ("REFRESHER_CONFIG", "REFRESHER_STATE_DIR", "https_proxy", "ALL_PROXY", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "/the/users/own")
    given = environment(tmp_path)
    assert "/the/users/own" not in given.values()
    assert given["KEPT"] == "1"
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "REFRESHER_STATE_DIR", "REFRESHER_SPILL_DIR"):
        assert Path(given[name]).is_relative_to(tmp_path)


def test_without_the_mcp_sdk_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a user who installed only the service would get a traceback."""
    monkeypatch.setattr(cli_demo, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"the demo needs the MCP SDK: .*pip install '\.\[all\]'"):
        cli.main(["demo", "--seconds", "5"], standalone_mode=False)


def test_the_command_is_cheap_to_import() -> None:
    """If it failed, each command would load the libraries of the demo."""
    code = "import sys, refresher.cli.demo; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mcp", "httpx", "httpx2", "uvicorn", "anyio"} & set(loaded)
