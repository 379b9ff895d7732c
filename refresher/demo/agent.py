"""The agent of the demo, ``python -m refresher.demo.agent MCP_URL NAME``: calls a tool all the time, in one session.

It is what your program would be: an MCP client, and ``auth=BearerAuth(NAME)``. It reports on stdout a few times a
second, and ends with its stdin, after the current call.
"""

import argparse
import json
import logging
import os
import time
from typing import Final

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolResult, TextContent

from refresher.common.secret import mask
from shim import FileTokenSource
from shim.httpx2 import BearerAuth

__all__ = ["Agent", "main"]

_PAUSE: Final = 0.01
_AFTER_A_FAILURE: Final = 0.5
_REPORT_EACH: Final = 0.2
_LONGEST_END: Final = 3.0

# The SDK's errors for a session that is over: the connection broke, or the server has forgotten the session.
_SESSION_IS_OVER: Final = (CONNECTION_CLOSED, INVALID_REQUEST)


def main() -> None:
    """Call until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m refresher.demo.agent")
    parser.add_argument("mcp_url")
    parser.add_argument("name", help="of the grant whose token it uses")
    given = parser.parse_args()
    logging.disable()
    anyio.run(_run, given.mcp_url, given.name)


async def _run(mcp_url: str, name: str) -> None:
    await Agent(mcp_url, name).run()


class Agent:
    """Calls a tool, and counts each call, each failure and each session."""

    def __init__(self, mcp_url: str, name: str) -> None:
        self._mcp_url = mcp_url
        self._source = FileTokenSource(name)
        self._calls = 0
        self._failed = 0
        self._failure = ""
        self._sessions = 0
        self._slowest = 0.0
        self._ending = anyio.Event()
        self._patience = anyio.CancelScope()

    async def run(self) -> None:
        """Call until stdin ends; failures are counted, not raised."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_with_stdin)
            tasks.start_soon(self._report)
            while not self._ending.is_set():
                try:
                    if self._has_a_token():
                        with anyio.CancelScope() as self._patience:
                            await self._work_in_a_session()
                        if self._patience.cancelled_caught:
                            self._fail(TimeoutError("no answer by the end"))
                except Exception as error:  # noqa: BLE001  whatever ends a session is counted
                    self._calls += 1  # opening and closing a session are calls too
                    self._fail(error)
                    await anyio.sleep(_AFTER_A_FAILURE)
                await anyio.sleep(_PAUSE)
            tasks.cancel_scope.cancel()
        self._print_report()

    async def _work_in_a_session(self) -> None:
        async with (
            # Nothing leaves this machine, whatever proxy the environment names.
            httpx2.AsyncClient(
                auth=BearerAuth(self._source), timeout=httpx2.Timeout(30, read=300), trust_env=False
            ) as http,
            # The protocol with a handshake: the server keeps its session, and a restart would lose it.
            Client(streamable_http_client(self._mcp_url, http_client=http), mode="legacy") as client,
        ):
            self._sessions += 1
            while not self._ending.is_set():
                try:
                    await self._call_once(client)
                except MCPError as error:
                    self._fail(error)
                    if error.code in _SESSION_IS_OVER:
                        return
                    await anyio.sleep(_AFTER_A_FAILURE)
                await anyio.sleep(_PAUSE)

    async def _call_once(self, client: Client) -> None:
        began = time.monotonic()
        self._calls += 1
        answer = await client.call_tool("add", {"a": self._calls, "b": 1})
        if not _says(answer, str(self._calls + 1)):
            self._fail(ValueError("the tool gave a wrong answer"))
        self._slowest = max(self._slowest, time.monotonic() - began)

    def _has_a_token(self) -> bool:
        token = self._source.current()
        return token is not None and token.access_token is not None

    def _fail(self, error: BaseException) -> None:
        self._failed += 1
        problem = self._source.problem()
        words = _words(error) if problem is None else f"{_words(error)}; {problem}"
        self._failure = mask(words)

    async def _end_with_stdin(self) -> None:
        while not self._ending.is_set():
            await anyio.wait_readable(0)
            if os.read(0, 1024) == b"":
                self._ending.set()
        await anyio.sleep(_LONGEST_END)
        self._patience.cancel()

    async def _report(self) -> None:
        while True:
            self._print_report()
            await anyio.sleep(_REPORT_EACH)

    def _print_report(self) -> None:
        said = {
            "calls": self._calls,
            "failed": self._failed,
            "failure": self._failure,
            "sessions": self._sessions,
            "slowest": self._slowest,
        }
        print(json.dumps(said), flush=True)  # noqa: T201  this is what stdout is for here


def _says(answer: CallToolResult, text: str) -> bool:
    return not answer.is_error and [part.text for part in answer.content if isinstance(part, TextContent)] == [text]


def _words(error: BaseException) -> str:
    """Return the innermost error of the SDK's groups as text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    words = error.message if isinstance(error, MCPError) else str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


if __name__ == "__main__":
    main()
