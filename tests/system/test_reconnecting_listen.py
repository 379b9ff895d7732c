"""``ReconnectingClient.listen``: a subscription that comes back by itself (protocol 2026-07-28)."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client.subscriptions import ListenNotSupportedError, ServerEvent, ToolsListChanged

from shim import ReauthorizationRequired
from shim._backoff import StreamPauses
from shim.mcp import ReconnectingClient, ServerAway
from tests.support.published import DEAD
from tests.support.stage import Stage, publish, rotates, until

TOOLS = ToolsListChanged()


@pytest.fixture(params=["json", "sse"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A server that answers in JSON or in a stream, and accepts the first token."""
    with Stage(json_response=request.param == "json") as made:
        made.play(tokens=["access-token-1"])
        yield made


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], None]:
    """Run a test on both event loops."""

    async def bounded(test: Callable[[], Any]) -> None:
        with anyio.fail_after(90):
            await test()

    return lambda test: anyio.run(bounded, test, backend=request.param)


async def _notified(client: ReconnectingClient, subscription: AsyncIterator[ServerEvent]) -> None:
    """Let the server notify until the subscription yields it."""
    async with anyio.create_task_group() as tasks:

        async def notify() -> None:
            while True:
                await client.call_tool("notify")
                await anyio.sleep(0.1)

        tasks.start_soon(notify)
        assert await anext(subscription) == TOOLS
        tasks.cancel_scope.cancel()


def test_a_subscription_that_is_cut_comes_back(
    tmp_path: Path, stage: Stage, run: Callable[[Callable[[], Any]], None]
) -> None:
    """If it failed, an agent would hear nothing after the first cut, or not know that it may have missed something."""
    source = publish(tmp_path, stage).source()

    async def test() -> None:
        async with ReconnectingClient(stage.url, source) as client:
            events = client.events()
            async with client.listen(tools_list_changed=True) as subscription:
                await _notified(client, subscription)
                for _ in range(3):
                    stage.play(cut_streams=True)
                    assert await anext(subscription) == TOOLS, "a gap is not announced"
                    assert (await anext(events)).what == "reconnecting"
                    assert (await anext(events)).what == "connected"
                    assert client.state == "connected"
                await _notified(client, subscription)
                assert subscription.honored.tools_list_changed

    run(test)


def test_a_subscription_survives_a_restart_without_a_call(
    tmp_path: Path, stage: Stage, run: Callable[[Callable[[], Any]], None]
) -> None:
    """If it failed, an agent that only listens would be deaf after a restart of its server."""
    source = publish(tmp_path, stage).source()

    async def test() -> None:
        async with (
            ReconnectingClient(stage.url, source) as client,
            client.listen(tools_list_changed=True) as subscription,
        ):
            stage.stop()
            async with anyio.create_task_group() as tasks:

                async def start() -> None:
                    await until(lambda: client.state == "reconnecting", "the state says that the server is away")
                    await anyio.to_thread.run_sync(stage.start, "access-token-1")

                tasks.start_soon(start)
                assert await anext(subscription) == TOOLS
            await _notified(client, subscription)

    run(test)


@pytest.mark.asyncio
async def test_a_subscription_waits_for_a_server_as_long_as_a_call(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would get another error than from a call, or could not go on listening."""
    source = publish(tmp_path, stage).source()
    async with (
        ReconnectingClient(stage.url, source, patience=2) as client,
        client.listen(tools_list_changed=True) as subscription,
    ):
        stage.stop()
        for _ in range(2):
            with anyio.fail_after(90), pytest.raises(ServerAway):
                await anext(subscription)
        stage.start("access-token-1")
        await until(lambda: _is_back(client), "the server is back")
        with anyio.fail_after(90):
            assert await _next(subscription) == TOOLS


def _is_back(client: ReconnectingClient) -> bool:
    try:
        return client.session is not None
    except ServerAway:
        return False


async def _next(subscription: AsyncIterator[ServerEvent]) -> ServerEvent:
    """Iterate again after each ``ServerAway``."""
    while True:
        try:
            return await anext(subscription)
        except ServerAway:
            pass


@pytest.mark.asyncio
async def test_a_refused_token_is_replaced_for_a_subscription(tmp_path: Path, stage: Stage) -> None:
    """If it failed, listening would end with the token."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client, anyio.create_task_group() as tasks:
        stage.play(tokens=[])
        tasks.start_soon(rotates, published, stage, 2)
        with anyio.fail_after(90):
            async with client.listen(tools_list_changed=True) as subscription:
                await _notified(client, subscription)


@pytest.mark.asyncio
async def test_a_dead_login_ends_the_wait_of_a_subscription_once(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, an agent would get a bare 401, or the same problem again and again, or miss the new login."""
    monkeypatch.setattr(StreamPauses, "next", lambda *_: 0.0)
    published = publish(tmp_path, stage)
    async with (
        ReconnectingClient(stage.url, published.source(), wait=0) as client,
        client.listen(tools_list_changed=True) as subscription,
    ):
        published.put(1, state="reauthorization_required", error=DEAD)
        stage.play(tokens=[], cut_streams=True)
        with anyio.fail_after(90), pytest.raises(ReauthorizationRequired):
            await anext(subscription)
        asked = stage.log()["requests"]
        async with anyio.create_task_group() as tasks:

            async def log_in() -> None:
                await until(lambda: client.state == "parked", "the client is parked")
                assert stage.log()["requests"] == asked
                stage.play(tokens=["access-token-2"])
                published.put(2)

            tasks.start_soon(log_in)
            with anyio.fail_after(90):
                assert await anext(subscription) == TOOLS
        with anyio.fail_after(90):
            await _notified(client, subscription)


@pytest.mark.asyncio
async def test_a_server_that_ends_each_subscription_is_asked_once_a_second(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a faulty server would get hundreds of requests a second."""
    pauses: list[float] = []

    following = StreamPauses.next

    def at_once(self: StreamPauses, asked: float | None = None) -> float:
        pauses.append(following(self, asked))
        return 0.0

    monkeypatch.setattr(StreamPauses, "next", at_once)
    source = publish(tmp_path, stage).source()
    async with ReconnectingClient(stage.url, source) as client, client.listen(tools_list_changed=True) as subscription:
        for _ in range(8):
            stage.play(cut_streams=True)
            with anyio.fail_after(90):
                await anext(subscription)
    assert min(pauses) >= 0.5
    assert max(pauses) > 10.0, "the pauses do not grow"


@pytest.mark.asyncio
async def test_a_subscription_ends_with_its_client(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a task that listens would outlast its client."""
    source = publish(tmp_path, stage).source()
    async with (
        ReconnectingClient(stage.url, source) as client,
        client.listen(tools_list_changed=True) as subscription,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.aclose)
        with anyio.fail_after(90):
            assert [event async for event in subscription] == []


@pytest.mark.asyncio
async def test_the_older_protocol_has_no_subscriptions(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would wait for notifications that cannot come."""
    source = publish(tmp_path, stage).source()
    async with ReconnectingClient(stage.url, source, mode="legacy") as client:
        with pytest.raises(ListenNotSupportedError):
            async with client.listen(tools_list_changed=True):
                pass
