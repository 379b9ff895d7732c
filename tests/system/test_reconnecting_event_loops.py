"""``ReconnectingClient`` on trio, on two event loops at once, and fifty times with one token."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shim.mcp import ReconnectingClient, TokenSources
from tests.support.command import Command, wait_until
from tests.support.daemon import running, stopped
from tests.support.mcp_child import child_client
from tests.support.mcp_server import MCPServerProcess
from tests.support.published import Published
from tests.support.stage import Stage, publish, rotates, until

Mode = Literal["auto", "legacy"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_client_recovers_and_reconnects_on_trio(tmp_path: Path, stage: Stage, mode: Mode) -> None:
    """If it failed, agents on trio would lose their session with their token."""
    published = publish(tmp_path, stage)

    async def use_client() -> str:
        async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
            session, events = client.session, client.events()
            stage.play(tokens=[])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rotates, published, stage, 2)
                assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
            assert client.session is session, "the client reconnected because of a token"
            with anyio.move_on_after(0.2):
                await client.call_tool("slow", {"seconds": 60})
            stage.stop()
            stage.start("access-token-2")
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.aclose)
                assert [what async for what, _ in events][:1] == ["rotated"]
        return client.state

    assert anyio.run(use_client, backend="trio") == "closed"


def test_a_rotation_replaces_the_process_on_trio(tmp_path: Path) -> None:
    """If it failed, a stdio server of an agent on trio would keep its first token."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)

    async def use_client() -> None:
        async with child_client(place, published) as client:
            for generation in (1, 2):
                published.put(generation)
                result = (await client.call_tool("whoami")).structured_content
                assert result == {"token": f"access-token-{generation}", "alone": "yes"}

    anyio.run(use_client, backend="trio")
    assert not place.exists(), "a process was left behind"


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio")])
def test_two_event_loops_share_one_source(tmp_path: Path, stage: Stage, backends: tuple[str, str]) -> None:
    """If it failed, a program with a loop in each of two threads would demand twice, or one loop would wait forever."""
    published = publish(tmp_path, stage)
    sources = TokenSources(tokens_dir=published.tokens, demands_dir=published.demands)
    connected = threading.Barrier(3, timeout=90)
    revoked = threading.Event()

    async def use_client() -> list[int]:
        async with ReconnectingClient(stage.url, sources["linear"]) as client:
            await anyio.to_thread.run_sync(connected.wait)
            await until(revoked.is_set, "its token is revoked")
            results: list[int] = []

            async def call(number: int) -> None:
                result = await client.call_tool("add", {"a": number, "b": 0})
                assert result.structured_content is not None
                results.append(result.structured_content["result"])

            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(call, number)
            return sorted(results)

    def agent(backend: str) -> list[int]:
        return anyio.run(use_client, backend=backend)

    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(agent, backend) for backend in backends]
        connected.wait()
        stage.play(tokens=[])
        revoked.set()
        wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
        stage.play(tokens=["access-token-2"])
        published.put(2)
        assert [run.result(90) for run in runs] == [list(range(10))] * 2
    assert published.demanded() == ["linear.1"]
    assert len(sources) == 1


@pytest.mark.asyncio
async def test_fifty_clients_with_one_rejected_token_cause_one_rotation(refresher: Command, own_oidc: Any) -> None:
    """If it failed, each of a program's connections would spend a refresh token for the same 401."""
    oidc = own_oidc()
    with MCPServerProcess(oidc) as server:
        refresher.import_grant("linear", oidc.mint("basic", server.url, live=True) | {"server_url": server.url})
        sources = TokenSources(tokens_dir=refresher.tokens, demands_dir=refresher.state / "demands")
        with running(refresher) as daemon:
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(ReconnectingClient(server.url, sources["linear"], wait=60))
                    for _ in range(50)
                ]
                sessions = [client.session for client in clients]
                first = refresher.token("linear")
                oidc.end(first.access_token)
                results = await asyncio.gather(*(client.call_tool("add", {"a": 1, "b": 2}) for client in clients))
                assert [result.structured_content for result in results] == [{"result": 3}] * 50
                assert [client.session for client in clients] == sessions
            assert len(oidc.requests()) == 1
            assert refresher.token("linear").generation == first.generation + 1
            stopped(refresher, daemon)
