"""The lines for programs that cannot be installed here: the command in them is started as these programs do."""

import json
from typing import Any

import anyio
import pytest
import yaml
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import TextContent

from refresher.cli.clients.programs import PROGRAMS
from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.command import Command
from tests.support.program_stage import Stage, staged

# Where each program's documentation puts a server, and the keys of its command.
_NOT_TRIED = {
    "claude-desktop": ("mcpServers", "command"),
    "cursor": ("mcpServers", "command"),
    "vscode": ("servers", "command"),
    "goose": ("extensions", "cmd"),
}


def test_each_program_that_was_not_tried_says_so() -> None:
    """If it failed, a reader would take a guess for a fact."""
    assert {client.key for client in PROGRAMS if "not tried" in client.picked_up} == set(_NOT_TRIED)
    assert all("Tried with" in client.picked_up for client in PROGRAMS if client.key not in _NOT_TRIED)


@pytest.mark.parametrize("key", _NOT_TRIED)
def test_the_command_in_the_lines_is_an_mcp_server(refresher: Command, key: str) -> None:
    """If it failed, the lines for the program would start a command that fails, or that loses a call at a rotation."""
    need(oidc_module.missing())

    async def main(stage: Stage, entry: dict[str, Any]) -> None:
        command = StdioServerParameters(command=entry[_NOT_TRIED[key][1]], args=entry["args"], env={"PATH": "/nowhere"})
        async with stdio_client(command) as streams, ClientSession(*streams) as session:
            with anyio.fail_after(120):
                await session.initialize()
                for turn in stage.turns():
                    for call in turn:
                        (content,) = (await session.call_tool("add", {"a": call.a, "b": call.b})).content
                        assert isinstance(content, TextContent)
                        assert content.text == str(call.a + call.b)

    with staged(refresher) as stage:
        snippet = stage.snippet(key)
        read = yaml.safe_load(snippet) if key == "goose" else json.loads(snippet)
        anyio.run(main, stage, read[_NOT_TRIED[key][0]]["linear"])
