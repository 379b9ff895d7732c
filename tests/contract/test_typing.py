"""The types of ``shim``, as a type checker sees them."""

import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from refresher.cli.connect import CLIENTS
from tests.conftest import need
from tests.support.documents import DOCUMENTS, ROOT, blocks
from tests.support.recipes import EXAMPLE, PAGE

CACHE = Path(__file__).parent.parent.parent / ".mypy_cache/test_typing"

# A user's program. The type checker must report the lines marked as wrong, and no other line.
PROGRAM = """
import httpx
import httpx2
from typing import assert_type
import shim
import shim.httpx
import shim.httpx2
from shim.mcp import ClientEvent, ReconnectingClient
from mcp.types import CallToolResult, ListPromptsResult, ListToolsResult
from shim import Event, FileTokenSource, ReauthorizationRequired, Removed, Restored, Rotated, ShimError, TokenFile

source = FileTokenSource("linear")
assert_type(source.current(), TokenFile | None)
assert_type(source.token(min_valid=60, wait=1.5), str)
assert_type(source.headers("https://mcp.example/"), dict[str, str])
assert_type(source.problem(), ShimError | None)
httpx.Client(auth=shim.httpx.BearerAuth("linear"))
httpx.AsyncClient(auth=shim.httpx.BearerAuth(source, wait=1, raise_errors=True))
httpx2.Client(auth=shim.httpx2.BearerAuth("linear"))
httpx.AsyncClient(auth=shim.BearerAuth("linear"))
httpx2.AsyncClient(auth=shim.BearerAuth(source, wait=1, raise_errors=True))
assert_type(shim.BearerAuth("linear").source, FileTokenSource)
httpx2.AsyncClient(auth=shim.httpx2.BearerAuth(source))
assert_type(shim.httpx2.async_client("linear"), httpx2.AsyncClient)
assert_type(shim.httpx2.client(source, wait=1, raise_errors=True, trust_env=False), httpx2.Client)
assert_type(shim.httpx.async_client(source, timeout=5), httpx.AsyncClient)
assert_type(shim.httpx.client("linear"), httpx.Client)


def name_of(event: Event) -> str:
    match event:
        case Rotated(name, generation) | Restored(name, generation):
            assert_type(generation, int)
            return name
        case ReauthorizationRequired():
            return assert_type(event.as_json(), str)
        case Removed():
            return event.name


async def listen() -> None:
    async for event in source.changes():
        assert_type(event, Event)
    for event in source.changes(poll=0.5):
        assert_type(event, Event)


async def call() -> None:
    async with ReconnectingClient("https://mcp.example/mcp", source, mode="auto", patience=5) as client:
        assert_type(await client.list_tools(), ListToolsResult)
        assert_type(await client.list_prompts(cursor="2"), ListPromptsResult)
        assert_type(await client.call_tool("add", {"a": 1}), CallToolResult)
        await client.list_prompts(page=2)  # wrong: mcp.Client has no such parameter
        await client.call_tool("add", a=1)  # wrong: likewise
        async for event in client.events():
            assert_type(event, ClientEvent)
            what, reason = event
            assert_type(reason, str)
    ReconnectingClient("https://mcp.example/mcp", "linear", mod="auto")  # wrong: mcp.Client has no such option


httpx2.Client(auth=shim.httpx.BearerAuth("linear"))  # wrong: the class is for another library
shim.httpx2.client(5)  # wrong: likewise
shim.BearerAuth(5)  # wrong: likewise
shim.Bearer("linear")  # wrong: there is no such name
FileTokenSource(5)  # wrong: a name is a str
source.token(60)  # wrong: min_valid is a keyword argument
"""


def _mypy(directory: Path, *options: str | Path) -> str:
    # Outside the checkout, so that the checker finds the installed package by its py.typed, as for a user. The cache keeps
    # what it knows of other packages, most of its work, from one run to the next.
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={CACHE}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    return done.stdout + done.stderr


def test_a_type_checker_finds_exactly_the_errors_of_a_users_program(tmp_path: Path) -> None:
    """If it failed, type checkers of users would report wrong errors, or miss real ones."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    found = _mypy(tmp_path, path)
    wrong = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line]
    errors = sorted({int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line})
    assert errors == wrong, found


def test_a_type_checker_accepts_each_snippet_of_the_documents(tmp_path: Path) -> None:
    """If it failed, a type checker would report errors in code that users copy from a document."""
    snippets = [text for document in DOCUMENTS if document != PAGE for text in blocks(document, "python")]
    assert _mypy(tmp_path, *_written(tmp_path, snippets)) == ""


@pytest.mark.parametrize(
    ("keys", "interpreter"),
    [(["mcp-sdk"], Path(sys.executable)), (["mcp-sdk-1"], ROOT / ".venv/mcp1/bin/python")],
    ids=["MCP SDK 2.x", "MCP SDK 1.x"],
)
def test_a_type_checker_accepts_the_lines_of_connect(tmp_path: Path, keys: list[str], interpreter: Path) -> None:
    """If it failed, a type checker would report errors in the lines, or where one of httpx and httpx2 is missing."""
    need(None if interpreter.exists() else f"{interpreter.parent.parent.name} is missing: tests/run creates it")
    lines = [indent(client.text(EXAMPLE), "    ") for client in CLIENTS if client.key in keys]
    paths = _written(tmp_path, [f"async def main() -> None:\n{text}" for text in lines])
    assert len(paths) == len(keys)
    assert _mypy(tmp_path, f"--python-executable={interpreter}", *paths) == ""


def _written(directory: Path, snippets: list[str]) -> list[Path]:
    paths = [directory / f"snippet{number}.py" for number in range(len(snippets))]
    for path, text in zip(paths, snippets, strict=True):
        path.write_text(text)
    return paths
