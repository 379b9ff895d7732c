"""An agent that gets its token in one of two ways, and reports the results of its calls.

    python -m tests.bench.agent_program

Reads its ``Plan``, a line of JSON, and prints that it is ready. After the next line it makes the calls; another line ends
steady calls. Then it prints its ``Report``.
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, TypedDict

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from mcp import Client
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from shim import FileTokenSource
from shim.mcp import ReconnectingClient

__all__ = ["Plan", "Report"]

_REDIRECT = AnyUrl("https://client.example/callback")
_PAUSE = 0.05
_LAST_ANSWERS = 10.0
"""Seconds in which running calls must end after a steady round."""
_Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Plan(TypedDict):
    """The calls of an agent, and how it gets its token."""

    url: str
    way: Literal["refresher", "sdk"]
    tokens: str
    """The directory of published tokens (refresher), or the file of the stored login (SDK)."""
    demands: str
    metadata: dict[str, Any] | None
    """The metadata that the SDK's provider knows if it has logged in in the same process."""
    life: int
    """The lifetime in seconds that it then knows too."""
    load: Literal["at once", "steadily"]
    calls: int
    """The number of calls at the same time."""
    bound: float
    """Seconds after which a round ends, with calls still running."""
    connects_late: bool
    """Whether it connects when it begins, not before it is ready."""


class Report(TypedDict):
    """The results of the calls."""

    calls: int
    failed: int
    unended: int
    logins: int
    errors: list[str]


class _Stored(TokenStorage):
    """A login in a file that several processes share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get_tokens(self) -> OAuthToken | None:
        return OAuthToken.model_validate_json(self._path.read_bytes())

    async def set_tokens(self, tokens: OAuthToken) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(tokens.model_dump_json())
        temporary.rename(self._path)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return OAuthClientInformationFull(
            client_id="public", redirect_uris=[_REDIRECT], token_endpoint_auth_method="none"
        )

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        return


class _Provider(OAuthClientProvider):
    """The provider of the SDK, with a stored login and no person at the screen."""

    def __init__(self, plan: Plan) -> None:
        self.logins = 0
        super().__init__(
            plan["url"],
            OAuthClientMetadata(redirect_uris=[_REDIRECT]),
            _Stored(Path(plan["tokens"])),
            redirect_handler=self._show,
            callback_handler=self._no_person,
        )
        if plan["metadata"] is not None:
            self.context.oauth_metadata = OAuthMetadata.model_validate(plan["metadata"])

    def begins(self, plan: Plan) -> None:
        if plan["metadata"] is not None:
            self.context.update_token_expiry(
                OAuthToken(access_token="as stored", token_type="Bearer", expires_in=plan["life"])
            )

    async def _show(self, url: str) -> None:
        self.logins += 1

    async def _no_person(self) -> AuthorizationCodeResult:
        raise TimeoutError("no person has logged in")


class _Tally:
    """The results of calls."""

    def __init__(self) -> None:
        self.begun = self.succeeded = 0
        self.errors: list[str] = []

    async def make(self, call: _Call) -> None:
        self.begun += 1
        try:
            answer = await call("add", {"a": 1, "b": 2})
            if answer.is_error:
                self.errors.append("an error as a result")
            else:
                self.succeeded += 1
        except Exception as error:  # noqa: BLE001  any error is a result of the call
            self.errors.append(f"{type(error).__name__}: {error}")


async def _make_calls(plan: Plan, call: _Call, tally: _Tally, over: anyio.Event) -> None:
    """Make the calls; ``over`` ends steady ones."""

    async def steadily() -> None:
        while not over.is_set():
            await tally.make(call)
            with anyio.move_on_after(_PAUSE):
                await over.wait()

    async def end() -> None:
        await over.wait()
        scope.deadline = min(scope.deadline, anyio.current_time() + _LAST_ANSWERS)

    with anyio.move_on_after(plan["bound"]) as scope:
        async with anyio.create_task_group() as tasks:
            if plan["load"] == "steadily":
                tasks.start_soon(end)
            for _ in range(plan["calls"]):
                if plan["load"] == "steadily":
                    tasks.start_soon(steadily)
                else:
                    tasks.start_soon(tally.make, call)


def _client(plan: Plan, provider: _Provider | None) -> AbstractAsyncContextManager[Any]:
    if provider is not None:
        http = create_mcp_http_client(auth=provider)
        return Client(streamable_http_client(plan["url"], http_client=http))
    source = FileTokenSource("linear", tokens_dir=plan["tokens"], demands_dir=plan["demands"])
    return ReconnectingClient(plan["url"], source)


async def _connect(
    client: AbstractAsyncContextManager[Any], *, task_status: TaskStatus[_Call] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Connect, in a task of its own: if a session breaks, the SDK cancels the task that holds it."""
    started = False
    try:
        async with client as entered:
            started = True
            task_status.started(entered.call_tool)
            await anyio.sleep_forever()
    except Exception as error:  # noqa: BLE001  likewise
        if not started:
            task_status.started(_failing(f"no connection: {error!r}"))


def _failing(words: str) -> _Call:
    async def call(tool: str, arguments: dict[str, Any]) -> Any:
        raise ConnectionError(words)

    return call


async def _wait_for_a_line() -> None:
    await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def main(plan: Plan) -> None:
    """Carry out the plan."""
    provider = _Provider(plan) if plan["way"] == "sdk" else None
    tally, over = _Tally(), anyio.Event()

    async def listen() -> None:
        await _wait_for_a_line()
        over.set()

    async with anyio.create_task_group() as tasks:
        call = _failing("no connection in time")
        if not plan["connects_late"]:
            with anyio.move_on_after(plan["bound"]):
                call = await tasks.start(_connect, _client(plan, provider))
        print("ready", flush=True)
        await _wait_for_a_line()
        if provider is not None:
            provider.begins(plan)
        tasks.start_soon(listen)
        if plan["connects_late"]:
            with anyio.move_on_after(plan["bound"]):
                call = await tasks.start(_connect, _client(plan, provider))
        await _make_calls(plan, call, tally, over)
        report: Report = {
            "calls": tally.begun,
            "failed": len(tally.errors),
            "unended": tally.begun - tally.succeeded - len(tally.errors),
            "logins": 0 if provider is None else provider.logins,
            "errors": sorted(set(tally.errors))[:3],
        }
        print(json.dumps(report), flush=True)
        # Exit at once: calls that hang would delay a normal exit.
        os._exit(0)


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.stdin.readline()))
