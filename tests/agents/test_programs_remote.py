"""mcp-remote through the gateway, with the lines that ``refresher connect`` prints for it."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent

from tests.conftest import need
from tests.support.command import Command
from tests.support.program_stage import BIN, Stage, missing, staged
from tests.support.scripted_model import Call

ADDRESS = "127.0.0.1:8765"


@contextmanager
def _gateway(refresher: Command) -> Iterator[str]:
    """Run the gateway at a free port, and yield its address."""
    process = refresher.start("gateway", "--listen", "127.0.0.1:0")
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on " in line)
        yield line.split("listening on ")[1].split()[0].removeprefix("http://").rstrip("/")
    finally:
        process.terminate()
        refresher.finish(process)


@asynccontextmanager
async def _session(stage: Stage, arguments: list[str], environment: dict[str, str]) -> AsyncIterator[ClientSession]:
    """Start mcp-remote as a client does."""
    parameters = StdioServerParameters(
        command="npx",
        args=arguments,
        env={**stage.environment, "MCP_REMOTE_CONFIG_DIR": str(stage.home / ".mcp-auth"), **environment},
        cwd=BIN.parent.parent,
    )
    with (stage.home / "mcp-remote.log").open("w") as log:
        async with stdio_client(parameters, errlog=log) as streams, ClientSession(*streams) as session:
            with anyio.fail_after(120):
                await session.initialize()
            yield session


def _text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def _logins(stage: Stage) -> list[str]:
    """Return what mcp-remote has stored of a login: a registration, a verifier, tokens."""
    kept = sorted(path.name for path in (stage.home / ".mcp-auth").rglob("*.json"))
    return [name for name in kept if not name.endswith("_lock.json")]


@asynccontextmanager
async def _at_the_gateway(stage: Stage, address: str, key: str) -> AsyncIterator[ClientSession]:
    """Start mcp-remote with the lines of ``refresher connect``, the key and the port of the test."""
    (entry,) = json.loads(stage.snippet("mcp-remote"))["mcpServers"].values()
    assert entry["command"] == "npx"
    arguments = [argument.replace(ADDRESS, address) for argument in entry["args"]]
    environment = {name: value.replace("KEY", key) for name, value in entry["env"].items()}
    async with _session(stage, arguments, environment) as session:
        yield session
    assert _logins(stage) == []
    assert key not in (stage.home / "mcp-remote.log").read_text()


async def _add(session: ClientSession, call: Call) -> str:
    with anyio.fail_after(120):
        return _text(await session.call_tool("add", {"a": call.a, "b": call.b}))


def test_mcp_remote_at_the_gateway_survives_rotations_and_a_revocation(refresher: Command) -> None:
    """If it failed, mcp-remote would lose calls behind the gateway, or begin a login of its own."""
    need(missing("mcp-remote"))
    key = refresher("gateway", "key", "add", "mcp-remote", "linear").stdout.strip()

    async def main(stage: Stage, address: str) -> int:
        results: dict[Call, str] = {}

        async def add(session: ClientSession, call: Call) -> None:
            results[call] = await _add(session, call)

        async with _at_the_gateway(stage, address, key) as session:
            for turn in stage.turns():
                async with anyio.create_task_group() as group:
                    for call in turn:
                        group.start_soon(add, session, call)
        assert results == {call: str(call.a + call.b) for call in results}
        return len(results)

    with staged(refresher) as stage, _gateway(refresher) as address:
        assert anyio.run(main, stage, address) == 9
        assert len(stage.oidc.requests()) == 6, "a rotation was made twice, or missed"


def test_mcp_remote_at_the_gateway_names_a_login_that_is_needed(refresher: Command) -> None:
    """If it failed, mcp-remote would begin a login of its own, or would have to start again after that of refresher."""
    need(missing("mcp-remote"))
    key = refresher("gateway", "key", "add", "mcp-remote", "linear").stdout.strip()

    async def main(stage: Stage, address: str) -> None:
        async with _at_the_gateway(stage, address, key) as session:
            turns = stage.turns_around_a_login()
            assert await _add(session, next(turns)[0]) == "1001"
            with pytest.raises(MCPError, match="refresher login linear"):
                await _add(session, next(turns)[0])
            assert await _add(session, next(turns)[0]) == "3001"

    with staged(refresher) as stage, _gateway(refresher) as address:
        anyio.run(main, stage, address)


def test_mcp_remote_with_a_fixed_token_begins_a_login_at_the_first_rotation(refresher: Command) -> None:
    """If it failed, mcp-remote would need neither the gateway nor stdio, and the page would say what is not so."""
    need(missing("mcp-remote"))

    async def main(stage: Stage) -> None:
        environment = {"AUTH_HEADER": f"Bearer {stage.token()}", "PATH": f"{_no_browser(stage)}:{os.environ['PATH']}"}
        arguments = ["mcp-remote", stage.server.url, "--header", "Authorization:${AUTH_HEADER}"]
        async with _session(stage, arguments, environment) as session:
            assert _text(await session.call_tool("add", {"a": 1, "b": 1})) == "2"
            assert _logins(stage) == []
            stage.rotate()

            async def add() -> None:
                with pytest.raises(MCPError):
                    await session.call_tool("add", {"a": 1, "b": 2})

            with anyio.fail_after(120):
                async with anyio.create_task_group() as group:
                    group.start_soon(add)
                    while not any(name.endswith("_client_info.json") for name in _logins(stage)):
                        await anyio.sleep(0.05)
                    group.cancel_scope.cancel()  # the call waits for the login

    with staged(refresher) as stage:
        anyio.run(main, stage)


def _no_browser(stage: Stage) -> Path:
    """Return a directory with an xdg-open that opens nothing."""
    directory = stage.home / "bin"
    directory.mkdir()
    opener = directory / "xdg-open"
    opener.write_text("#!/bin/sh\n")
    opener.chmod(0o755)
    return directory
