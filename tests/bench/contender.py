"""An agent in a process of its own, that has its token in one of two ways; it tells what became of its calls.

    python -m tests.bench.contender

Reads its ``Orders``, a line of JSON, makes the calls with a fixed header, which is the peer of all its times, says that
it is ready, makes them in its own way after the next line, ends what it does steadily at the one after, and prints what
it has ``Told``.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, TypedDict

import anyio
import anyio.to_thread
import httpx2
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

__all__ = ["Orders", "Told"]

_REDIRECT = AnyUrl("https://client.example/callback")
_STEP = 0.05
_LAST_ANSWERS = 1.0
"""Seconds for calls under way when a steady round is over."""
_STEADY_PEERS = 20
_Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Orders(TypedDict):
    """What an agent is to do."""

    url: str
    way: Literal["ours", "sdk"]
    tokens: str
    """Where the published tokens are (ours), or the stored login (the SDK's)."""
    demands: str
    metadata: dict[str, Any] | None
    """What the SDK's provider knows of the authorization server where it has logged in in its own process."""
    life: int
    """Seconds from the beginning of which it then knows, too, that its token lives no longer."""
    header: str
    """The peer's."""
    load: Literal["at once", "beside", "steadily"]
    calls: int
    """How many at once."""
    seconds: float
    """What the server takes for one; ``beside``: for the one beside them."""
    rounds: int
    bound: float
    """Seconds after which a round is over, whatever is under way."""
    connects_late: bool
    """When it begins, and not before it is ready."""


class Told(TypedDict):
    """What became of it."""

    calls: int
    failed: int
    unended: int
    logins: int
    slowest: float
    """Of the measured calls that succeeded; in multiples of the peer's."""
    errors: list[str]


class _Stored(TokenStorage):
    """A login in a file, which processes share."""

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
    """The SDK's, with a stored login and nobody at the screen."""

    def __init__(self, orders: Orders) -> None:
        self.logins = 0
        super().__init__(
            orders["url"],
            OAuthClientMetadata(redirect_uris=[_REDIRECT]),
            _Stored(Path(orders["tokens"])),
            redirect_handler=self._show,
            callback_handler=self._nobody,
        )
        if orders["metadata"] is not None:
            self.context.oauth_metadata = OAuthMetadata.model_validate(orders["metadata"])

    def begins(self, orders: Orders) -> None:
        if orders["metadata"] is not None:
            self.context.update_token_expiry(
                OAuthToken(access_token="as stored", token_type="Bearer", expires_in=orders["life"])
            )

    async def _show(self, url: str) -> None:
        self.logins += 1

    async def _nobody(self) -> AuthorizationCodeResult:
        raise TimeoutError("nobody has logged in")


class _Tally:
    """What became of calls, and how long the slowest of the measured ones took."""

    def __init__(self) -> None:
        self.begun = self.succeeded = 0
        self.slowest = 0.0
        self.errors: list[str] = []

    async def make(self, call: _Call, tool: str, arguments: dict[str, Any], *, measured: bool = True) -> None:
        self.begun += 1
        began = time.perf_counter()
        try:
            answer = await call(tool, arguments)
            if answer.is_error:
                self.errors.append("an error as a result")
            else:
                self.succeeded += 1
                if measured:
                    self.slowest = max(self.slowest, time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what a caller gets
            self.errors.append(f"{type(error).__name__}: {error}")


async def _round(orders: Orders, call: _Call, tally: _Tally, over: anyio.Event) -> None:
    """Make the calls of one round; ``over`` ends a steady one."""

    async def steadily() -> None:
        while not over.is_set():
            await tally.make(call, "add", {"a": 1, "b": 2})
            with anyio.move_on_after(_STEP):
                await over.wait()

    async def end() -> None:
        await over.wait()
        scope.deadline = min(scope.deadline, anyio.current_time() + _LAST_ANSWERS)

    tally.slowest = 0.0
    with anyio.move_on_after(orders["bound"]) as scope:
        async with anyio.create_task_group() as tasks:
            if orders["load"] == "steadily":
                tasks.start_soon(end)
            if orders["load"] == "beside":
                beside = functools.partial(tally.make, measured=False)
                tasks.start_soon(beside, call, "slow", {"seconds": orders["seconds"]})
            for _ in range(orders["calls"]):
                match orders["load"]:
                    case "at once":
                        tasks.start_soon(tally.make, call, "slow", {"seconds": orders["seconds"]})
                    case "beside":
                        tasks.start_soon(tally.make, call, "add", {"a": 1, "b": 2})
                    case "steadily":
                        tasks.start_soon(steadily)


def _client(orders: Orders, provider: _Provider | None) -> AbstractAsyncContextManager[Any]:
    if provider is not None:
        http = create_mcp_http_client(auth=provider)
        return Client(streamable_http_client(orders["url"], http_client=http))
    source = FileTokenSource("linear", tokens_dir=orders["tokens"], demands_dir=orders["demands"])
    return ReconnectingClient(orders["url"], source)


async def _live(
    client: AbstractAsyncContextManager[Any], *, task_status: TaskStatus[_Call] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Connect, in a task of its own: where a session breaks, the SDK ends the task that holds it."""
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


async def _line() -> None:
    await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def main(orders: Orders) -> None:
    """Do as ordered."""
    provider = _Provider(orders) if orders["way"] == "sdk" else None
    fixed = httpx2.AsyncClient(headers={"Authorization": orders["header"]}, timeout=60)
    own, peer = _Tally(), _Tally()
    over = anyio.Event()

    async def compare() -> None:
        if orders["load"] != "steadily":
            await _round(orders, with_header, peer, over)
            return
        for _ in range(_STEADY_PEERS):
            await peer.make(with_header, "add", {"a": 1, "b": 2})

    async def listen() -> None:
        await _line()
        over.set()

    async with anyio.create_task_group() as tasks:
        with_header = await tasks.start(_live, Client(streamable_http_client(orders["url"], http_client=fixed)))
        call = _failing("no connection in time")
        if not orders["connects_late"]:
            with anyio.move_on_after(orders["bound"]):
                call = await tasks.start(_live, _client(orders, provider))
        for _ in range(2):  # once to connect
            await compare()
        print("ready", flush=True)
        await _line()
        if provider is not None:
            provider.begins(orders)
        tasks.start_soon(listen)
        if orders["connects_late"]:
            with anyio.move_on_after(orders["bound"]):
                call = await tasks.start(_live, _client(orders, provider))
        times = []
        for number in range(orders["rounds"]):
            if number:
                await compare()
            await _round(orders, call, own, over)
            times.append((own.slowest, peer.slowest))
        told: Told = {
            "calls": own.begun,
            "failed": len(own.errors),
            "unended": own.begun - own.succeeded - len(own.errors),
            "logins": 0 if provider is None else provider.logins,
            "slowest": min(ours for ours, _ in times) / min(theirs for _, theirs in times),
            "errors": sorted(set(own.errors))[:3],
        }
        print(json.dumps(told), flush=True)
        # How it takes leave is no part of this; who is stuck would not.
        os._exit(0)


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.stdin.readline()))
