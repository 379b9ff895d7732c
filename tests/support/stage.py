"""An MCP server in a separate process, whose faults a test controls."""

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import httpx

from shim.mcp import ReconnectingClient, ServerAway
from tests.support.published import Published
from tests.support.warm import WarmProcess

__all__ = ["Stage", "add_when_back", "publish", "rotates", "until"]

_ROOT = Path(__file__).parent.parent.parent


class Stage:
    """Runs ``tests/servers/mcp_stage.py``; ``options`` are those of the SDK's ``streamable_http_app``."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._process = self._start(0, {})

    def _start(self, port: int, wishes: dict[str, Any]) -> subprocess.Popen[str]:
        process = WarmProcess(
            ["tests.servers.mcp_stage", str(port), json.dumps(self._options), json.dumps(wishes)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the MCP server did not start"
        self.url: str = json.loads(line)["url"]
        return process

    def play(self, **wishes: Any) -> None:
        """Change the behavior of the server from now on."""
        httpx.post(
            self.url.replace("/mcp", "/test/play"), json=wishes, trust_env=False, verify=False, timeout=60
        ).raise_for_status()

    def log(self) -> dict[str, Any]:
        """Return the number of responses by status, and of executions by call."""
        answer: dict[str, Any] = httpx.get(
            self.url.replace("/mcp", "/test/log"), trust_env=False, verify=False, timeout=60
        ).json()
        return answer

    def stop(self) -> None:
        """Kill the server, which frees its port."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def start(self, *tokens: str) -> None:
        """Start the server again at the same port, with default settings; it accepts ``tokens`` from the beginning."""
        self._process = self._start(int(self.url.rpartition(":")[2].partition("/")[0]), {"tokens": tokens})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()


def publish(root: Path, server: Stage, generation: int | None = 1, **changes: Any) -> Published:
    """Publish a live token for ``server``; with ``generation=None``, publish none."""
    published = Published(root, server.url.removesuffix("/mcp"))
    if generation is not None:
        published.put(generation, **changes)
    return published


async def rotates(published: Published, server: Stage, generation: int, *also: str) -> None:
    """Act as refresher: wait for the demand, then rotate. ``also``: further tokens that the server accepts then."""
    await until(lambda: f"linear.{generation - 1}" in published.demanded(), "the agent demands a token")
    server.play(tokens=[f"access-token-{generation}", *also])
    published.put(generation)


async def add_when_back(client: ReconnectingClient) -> None:
    """Call a tool, again after each ``ServerAway``, for a client whose patience is short."""
    with anyio.fail_after(90):
        while True:
            with suppress(ServerAway):
                result = await client.call_tool("add", {"a": 1, "b": 2})
                assert result.structured_content == {"result": 3}
                return


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds; ``what`` names it in the error."""
    with anyio.move_on_after(90) as scope:
        while not condition():
            await anyio.sleep(0.01)
    assert not scope.cancelled_caught, f"after 90 s still not true: {what}"
