"""An MCP server on stdin and stdout. Its token is the environment variable STAGE_TOKEN.

    python mcp_child.py PLACE

The server creates the directory PLACE while it runs. ``alone`` says whether PLACE did not exist before.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Elicit, MCPServer, Resolve
from mcp_types import ToolAnnotations
from pydantic import BaseModel

PLACE = Path(sys.argv[1])
mcp = MCPServer("child")


@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def whoami() -> dict[str, str]:
    return {"token": os.environ["STAGE_TOKEN"], "alone": alone}


@mcp.tool()
async def slow(marker: str) -> str:
    (PLACE / marker).touch()
    try:
        while (PLACE / marker).exists():
            await anyio.sleep(0.01)
    finally:
        (PLACE / marker).unlink(missing_ok=True)
    return os.environ["STAGE_TOKEN"]


@mcp.tool()
def check(bad: str, how: str) -> str:
    token = os.environ["STAGE_TOKEN"]
    if how == "error" and token == bad:
        raise MCPError(-32001, f"bad {token}")
    return f"bad {token}" if token == bad else f"good {token}"


class Said(BaseModel):
    said: str


def ask() -> Elicit[Said]:
    return Elicit("what?", Said)


@mcp.tool()
def asks(answer: Annotated[Said, Resolve(ask)]) -> str:
    return answer.said


@mcp.tool()
def babble() -> str:
    os.write(int(os.environ["STAGE_STDOUT"]), b"\xff\xfe no JSON\n")
    return "said"


@mcp.tool()
def crash() -> None:
    os._exit(3)


if __name__ == "__main__":
    os.environ["STAGE_STDOUT"] = str(os.dup(1))  # the SDK uses descriptor 1
    try:
        PLACE.mkdir()
        alone = "yes"
    except FileExistsError:
        alone = "no"
    try:
        mcp.run("stdio")
    finally:
        PLACE.rmdir()
