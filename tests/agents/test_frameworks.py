"""Frameworks of others: each survives three rotations and one revocation, and no call fails."""

import json
import subprocess
from pathlib import Path

import pytest

from refresher.cli.clients.frameworks import FRAMEWORKS
from tests.conftest import need
from tests.support.command import Command
from tests.support.documents import ROOT
from tests.support.frameworks import GROUPS, NODE, NODE_MODULES, PROGRAMS, pinned, play
from tests.support.recipes import EXAMPLE

AGENTS = ROOT / "tests/agents"
GROUP_OF = {key: group for group, keys in GROUPS.items() for key in keys}
PYTHON = [client.key for client in FRAMEWORKS if client.language == "python"]
(TYPESCRIPT,) = (client for client in FRAMEWORKS if client.language == "ts")

# The names of packages that are not the key of their client.
PACKAGES = {
    "autogen": "autogen-ext",
    "crewai": "crewai-tools",
    "langchain": "langchain-mcp-adapters",
    "llama-index": "llama-index-tools-mcp",
    "mcp-sdk": "mcp",
    "mcp-sdk-1": "mcp",
    "pydantic-ai": "pydantic-ai-slim",
    "strands": "strands-agents",
}


def test_every_framework_is_tried() -> None:
    """If it failed, the page could show lines that nobody has tried."""
    assert sorted(GROUP_OF) == sorted(PYTHON) == sorted(PROGRAMS)
    assert {path.stem for path in AGENTS.glob("*.txt")} == set(GROUPS)


def test_the_version_on_the_page_is_the_one_that_is_tried() -> None:
    """If it failed, the page would name a version that nobody has tried."""
    servers = json.loads((ROOT / "tests/servers/package.json").read_text())["dependencies"]
    tried = {key: pinned(group)[PACKAGES.get(key, key)] for key, group in GROUP_OF.items()}
    tried["mcp-typescript"] = servers["@modelcontextprotocol/sdk"]
    assert {client.key: client.picked_up.rpartition(" ")[2].removesuffix(".") for client in FRAMEWORKS} == tried


def test_a_strict_compiler_accepts_the_lines_for_typescript(tmp_path: Path) -> None:
    """If it failed, a TypeScript project would not compile with the lines of the page."""
    compiler = AGENTS / "node_modules/typescript/bin/tsc"
    need(None if compiler.exists() else "typescript is missing: tests/run --agents installs it")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "agent.ts").write_text(TYPESCRIPT.text(EXAMPLE))
    (tmp_path / "refresher-fetch.ts").write_bytes((ROOT / "deploy/agents/refresher-fetch.ts").read_bytes())
    modules = tmp_path / "node_modules"
    (modules / "@types").mkdir(parents=True)
    (modules / "@types/node").symlink_to(AGENTS / "node_modules/@types/node")
    (modules / "@modelcontextprotocol").symlink_to(NODE_MODULES / "@modelcontextprotocol")
    (modules / "undici-types").symlink_to(AGENTS / "node_modules/undici-types")
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--types", "node"]
    options += ["--allowImportingTsExtensions", "--erasableSyntaxOnly"]
    done = subprocess.run(
        [str(NODE), str(compiler), *options, "agent.ts"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("key", PYTHON)
def test_a_framework_loses_no_call(refresher: Command, key: str) -> None:
    """If it failed, the lines of the page would lose a call at a rotation or a revocation."""
    python = ROOT / f".venv/agents/{GROUP_OF[key]}/bin/python"
    need(None if python.exists() else f".venv/agents/{GROUP_OF[key]} is missing: tests/run --agents creates it")
    play(refresher, {key: python})
