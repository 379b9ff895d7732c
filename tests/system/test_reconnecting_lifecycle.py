"""Entering, leaving and closing a ``ReconnectingClient``."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from shim import _backoff
from shim.mcp import ReconnectingClient
from tests.support.stage import Stage, publish, until

pytestmark = pytest.mark.asyncio

Enter = Callable[[ReconnectingClient], Awaitable[None]]


async def _in_a_scope(client: ReconnectingClient) -> None:
    with anyio.move_on_after(0.2):
        await client.__aenter__()


async def _in_a_timeout(client: ReconnectingClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), client:
            pass


async def _in_a_task_that_is_cancelled(client: ReconnectingClient) -> None:
    task = asyncio.create_task(client.__aenter__())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("enter", [_in_a_scope, _in_a_timeout, _in_a_task_that_is_cancelled])
async def test_entering_can_be_cancelled(tmp_path: Path, stage: Stage, enter: Enter) -> None:
    """If it failed, a timeout while a program enters a client would leave tasks behind."""
    published = publish(tmp_path, stage)
    stage.play(hang=True)
    before = len(asyncio.all_tasks())
    client = ReconnectingClient(stage.url, published.source())
    await enter(client)
    assert client.state == "closed"
    await until(lambda: len(asyncio.all_tasks()) <= before, "all tasks have ended")


async def test_clients_can_be_left_from_other_tasks_and_in_any_order(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a program that adds and removes servers would fail with errors about cancel scopes."""
    published = publish(tmp_path, stage)
    first, second = (ReconnectingClient(stage.url, published.source()) for _ in range(2))
    await asyncio.create_task(first.__aenter__())
    await second.__aenter__()
    await asyncio.create_task(first.__aexit__(None, None, None))
    assert (await second.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
    await second.__aexit__(None, None, None)
    assert (first.state, second.state) == ("closed", "closed")


async def test_an_exception_in_the_body_is_raised_unchanged(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent's own errors and timeouts would become exception groups."""
    published = publish(tmp_path, stage)
    with pytest.raises(ZeroDivisionError):
        async with ReconnectingClient(stage.url, published.source()):
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), ReconnectingClient(stage.url, published.source()):
            await anyio.sleep_forever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with anyio.move_on_after(0.5) as scope:
        async with ReconnectingClient(stage.url, published.source()):
            await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("patience", [1e5, 1e9], ids=["last attempt", "not the last attempt"])
async def test_closing_ends_the_backoff_of_a_call(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """If it failed, a shutdown would wait for the backoff of every call."""
    for bound in ("_FIRST_RETRY", "_LONGEST_RETRY"):
        monkeypatch.setattr(_backoff, bound, 1e6)
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=patience) as client:
        stage.stop()
        results: list[str] = []

        async def call() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await client.list_tools()
            results.append("closed")

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await until(
                    lambda: "connection refused" in str(client._supervisor.server_away()),
                    "the call has failed to connect",
                )
                tasks.start_soon(client.aclose)
        assert results == ["closed"]


async def test_a_closed_client_raises_in_every_method(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a program would wait forever for a client that it has closed."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        events = client.events()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.aclose)
            tasks.start_soon(client.aclose)
        with anyio.fail_after(60):
            assert [what async for what, _ in events] == []
            assert [what async for what, _ in client.events()] == []
        with pytest.raises(anyio.ClosedResourceError):
            _ = client.session
    with pytest.raises(RuntimeError, match="entered before"):
        await client.__aenter__()
