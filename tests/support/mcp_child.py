"""A ``ReconnectingClient`` of ``tests/servers/mcp_child.py``, a stdio server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp import MCPError, StdioServerParameters
from mcp_types import CallToolResult

from shim.mcp import OutcomeUnknown, ReconnectingClient
from tests.support.published import Published
from tests.support.stage import until
from tests.support.warm import start, stub

__all__ = ["child_client", "held", "whoami"]


def child_client(place: Path, published: Published, **options: Any) -> ReconnectingClient:
    """Return a client of the server, which creates the directory ``place`` while it runs."""
    start()
    command, *arguments = stub("tests.servers.mcp_child", str(place))
    child = StdioServerParameters(command=command, args=arguments)
    return ReconnectingClient(child, published.source(), token_variable="STAGE_TOKEN", **options)


async def whoami(client: ReconnectingClient) -> Any:
    """Return the token of the process, and whether the process is the only one."""
    return (await client.call_tool("whoami")).structured_content


class Held:
    """A call under way in a process."""

    def __init__(self, client: ReconnectingClient, marker: Path) -> None:
        self._client = client
        self._marker = marker
        self.outcome: CallToolResult | OutcomeUnknown | MCPError | None = None
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            try:
                self.outcome = await self._client.call_tool("slow", {"marker": self._marker.name})
            except (OutcomeUnknown, MCPError) as error:
                self.outcome = error

    @property
    def token(self) -> object:
        """The token with which the call ended; ``None`` while it is under way."""
        return self.outcome and isinstance(self.outcome, CallToolResult) and self.outcome.structured_content

    def release(self) -> None:
        """Let the call end."""
        self._marker.unlink(missing_ok=True)


@asynccontextmanager
async def held(client: ReconnectingClient, place: Path) -> AsyncIterator[Held]:
    """Keep a call under way in the process of ``client``, at most until the end."""
    call = Held(client, place / "running")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await until((place / "running").exists, "the call is under way")
        try:
            yield call
        finally:
            call.release()
