"""An agent on version 1.x of the MCP SDK with ``BearerAuth``, in a virtual environment of its own."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import need
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
    rounds, generations = 0, set()
    async with streamablehttp_client(url, auth=BearerAuth(source)) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        while len(generations) < 5:
            rounds += 1
            assert (await session.call_tool("add", {"a": 1, "b": 2})).structuredContent == {"result": 3}
            assert (await session.list_resources()).resources
            assert (await session.read_resource("stage://greeting")).contents[0].text == "hello"
            assert (await session.list_prompts()).prompts
            assert (await session.get_prompt("ask", {"about": "it"})).messages
            generations.add(source.current().generation)
            print(json.dumps({"rounds": rounds, "mcp": version("mcp")}), flush=True)

anyio.run(main, *sys.argv[1:])
"""


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
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert agent.stdout is not None
        told: list[dict[str, object]] = []
        ends = time.monotonic() + 60
        for line in agent.stdout:
            told.append(json.loads(line))
            assert time.monotonic() < ends, "the agent does not end"
            # The agent sees some rotations in the file first, others as a 401.
            generation = len(told) // 2 + 1
            stage.play(tokens=[f"access-token-{generation}"])
            published.put(generation)
        _, trouble = agent.communicate(timeout=60)
        assert agent.returncode == 0, trouble
    assert str(told[-1]["mcp"]).startswith("1.30")
