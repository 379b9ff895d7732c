"""The agent of the demo, ``python -m refresher.demo.agent MCP_URL NAME``: calls a tool repeatedly, in one session.

It is a model for your program: an MCP client with ``async_client(NAME)``. It reports on stdout a few times a second.
At SIGTERM it ends, after the current call.
"""

import logging
import signal
import sys
import time
from typing import Final

import anyio
import msgspec
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST

from refresher.common.secret import mask
from refresher.demo.timeline import AgentReport
from shim import FileTokenSource
from shim.httpx2 import async_client

__all__ = ["Agent", "main"]

_PAUSE: Final = 0.01
_PAUSE_AFTER_FAILURE: Final = 0.5
_REPORT_INTERVAL: Final = 0.2
_LAST_CALL_TIMEOUT: Final = 3.0

# The SDK's errors for a session that is over: the connection broke, or the server does not know the session any more.
_SESSION_IS_OVER: Final = (CONNECTION_CLOSED, INVALID_REQUEST)


def main() -> None:
    """Call until SIGTERM."""
    _, mcp_url, name = sys.argv
    logging.disable()
    anyio.run(lambda: Agent(mcp_url, name).run())


class Agent:
    """Calls a tool, and counts each call, each failure and each session."""

    def __init__(self, mcp_url: str, name: str) -> None:
        self._mcp_url = mcp_url
        self._source = FileTokenSource(name)
        self._report = AgentReport()
        self._ending = anyio.Event()
        self._session = anyio.CancelScope()

    async def run(self) -> None:
        """Call until SIGTERM; failures are counted, not raised."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_on_signal)
            tasks.start_soon(self._keep_reporting)
            while not self._ending.is_set():
                try:
                    if (token := self._source.current()) is not None and token.access_token is not None:
                        with anyio.CancelScope() as self._session:
                            await self._work_in_session()
                        if self._session.cancelled_caught:
                            self._fail(TimeoutError("the last call was not answered"))
                except Exception as error:  # noqa: BLE001  every failure of a session is counted
                    self._report.calls += 1  # opening and closing a session are calls too
                    self._fail(error)
                    await anyio.sleep(_PAUSE_AFTER_FAILURE)
                await anyio.sleep(_PAUSE)
            tasks.cancel_scope.cancel()
        self._print_report()

    async def _work_in_session(self) -> None:
        async with (
            # Nothing leaves this machine, even if the environment names a proxy.
            async_client(self._source, trust_env=False) as http,
            # The protocol with a handshake: the server keeps its session, and a restart would lose it.
            Client(streamable_http_client(self._mcp_url, http_client=http), mode="legacy") as client,
        ):
            self._report.sessions += 1
            while not self._ending.is_set():
                try:
                    began = time.monotonic()
                    self._report.calls += 1
                    result = await client.call_tool("add", {"a": self._report.calls, "b": 1})
                    if result.structured_content != {"result": self._report.calls + 1}:
                        self._fail(ValueError("the tool gave a wrong answer"))
                    self._report.slowest = max(self._report.slowest, time.monotonic() - began)
                except MCPError as error:
                    self._fail(error)
                    if error.code in _SESSION_IS_OVER:
                        return
                    await anyio.sleep(_PAUSE_AFTER_FAILURE)
                await anyio.sleep(_PAUSE)

    def _fail(self, error: BaseException) -> None:
        self._report.failed += 1
        while isinstance(error, BaseExceptionGroup):  # the SDK raises groups of groups
            error = error.exceptions[0]
        reason = (error.message if isinstance(error, MCPError) else str(error)) or "the connection broke"
        problem = self._source.problem()
        self._report.failure = mask(reason if problem is None else f"{reason}; {problem}")

    async def _end_on_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            await anext(signals)
            self._ending.set()
            await anyio.sleep(_LAST_CALL_TIMEOUT)
            self._session.cancel()

    async def _keep_reporting(self) -> None:
        while True:
            self._print_report()
            await anyio.sleep(_REPORT_INTERVAL)

    def _print_report(self) -> None:
        print(msgspec.json.encode(self._report).decode(), flush=True)  # noqa: T201  the demo reads it from stdout


if __name__ == "__main__":
    main()
