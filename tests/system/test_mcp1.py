"""An agent on version 1.x of the MCP SDK with ``BearerAuth``, in a virtual environment of its own."""

import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.command import wait_until
from tests.support.published import Published
from tests.support.stage import Stage

PYTHON = Path(__file__).parent.parent.parent / ".venv/mcp1/bin/python"

AGENT = """
import json, sys
import anyio
from importlib.metadata import version
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from shim import FileTokenSource
from shim.httpx import BearerAuth

async def main(url, tokens, demands):
    source = FileTokenSource("linear", tokens_dir=tokens, demands_dir=demands)
    auth = BearerAuth(source, wait=60)
    async with streamablehttp_client(url, auth=auth) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()

        async def add():
            assert (await session.call_tool("add", {"a": 1, "b": 2})).structuredContent == {"result": 3}

        async def list_resources():
            assert (await session.list_resources()).resources

        async def read_resource():
            assert (await session.read_resource("stage://greeting")).contents[0].text == "hello"

        async def list_prompts():
            assert (await session.list_prompts()).prompts

        async def get_prompt():
            assert (await session.get_prompt("ask", {"about": "it"})).messages

        for operation in (add, list_resources, read_resource, list_prompts, get_prompt):
            for _ in range(2):
                print("next", flush=True)
                sys.stdin.readline()
                await operation()
    print(version("mcp"), flush=True)

anyio.run(main, *sys.argv[1:])
"""


def is_demanded(published: Published, generation: int) -> bool:
    """Whether the agent demands a token newer than this generation."""
    return f"linear.{generation}" in published.demanded()


@pytest.mark.parametrize("options", [{"json_response": True}, {}], ids=["json", "sse"])
def test_all_operations_of_sdk_1_survive_rotations(tmp_path: Path, options: dict[str, bool]) -> None:
    """If it failed, agents on version 1.x of the SDK would break at each rotation."""
    need(None if PYTHON.exists() else f"{PYTHON.parent.parent.name} is missing: tests/run creates it")
    with Stage(**options) as stage:
        published = Published(tmp_path, stage.url.removesuffix("/mcp"))
        stage.play(tokens=["access-token-1"])
        published.put(1)
        agent = subprocess.Popen(
            [str(PYTHON), "-c", AGENT, stage.url, str(published.tokens), str(published.demands)],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert agent.stdin is not None
        assert agent.stdout is not None
        generation = 1
        while (line := agent.stdout.readline()) == "next\n":
            generation += 1
            stage.play(tokens=[f"access-token-{generation}"])
            # Before each operation, the agent sees the new token in the file, or gets a 401 for the old one.
            in_file = generation % 2 == 0
            if in_file:
                published.put(generation)
            agent.stdin.write("\n")
            agent.stdin.flush()
            if not in_file:
                wait_until(partial(is_demanded, published, generation - 1), "the agent demands a token")
                published.put(generation)
        _, stderr = agent.communicate(timeout=90)
        assert agent.returncode == 0, stderr
    assert generation == 11
    assert line.startswith("1.30")
