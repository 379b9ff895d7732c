"""``ReconnectingClient`` with ``is_auth_failure``, and the reasons in ``ServerAway``."""

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters

from shim import ReauthorizationRequired
from shim.mcp import ReconnectingClient, ServerAway
from tests.support.published import DEAD, Published
from tests.support.raw_server import RawServer
from tests.support.stage import Stage, publish, rotates, until

pytestmark = pytest.mark.asyncio


def _client(stage: Stage, published: Published, **options: Any) -> ReconnectingClient:
    """Return a client that recognises the server's error text about stale tokens."""

    def stale(result: object) -> bool:
        return "invalid token" in repr(result)

    return ReconnectingClient(stage.url, published.source(), is_auth_failure=stale, **options)


async def _result(client: ReconnectingClient) -> Any:
    return (await client.call_tool("stale")).structured_content


STALE = {"result": "Error: invalid token"}


async def test_an_auth_failure_of_a_dead_grant_is_returned_at_once(tmp_path: Path, stage: Stage) -> None:
    """If it failed, each call of an agent with a dead grant would wait for a token that never comes."""
    published = publish(tmp_path, stage)
    stage.play(tokens=["access-token-1", "access-token-2"])
    async with _client(stage, published, wait=1e9) as client, anyio.create_task_group() as tasks:

        async def die() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "the demand is there")
            published.put(1, state="reauthorization_required", error=DEAD)

        tasks.start_soon(die)
        with anyio.fail_after(60):
            assert await _result(client) == STALE
            published.put(2, state="reauthorization_required", error=DEAD)
            assert await _result(client) == STALE
        assert isinstance(client.source.problem(), ReauthorizationRequired)
        assert client.state == "connected", "a token that may be live was not used any more (I5)"
    assert published.demanded() == ["linear.1"], "a token of a dead grant was demanded"


async def test_closing_ends_the_wait_for_another_token(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a shutdown would hang on calls that wait for refresher, or lose the result of the server."""
    published = publish(tmp_path, stage)
    results: list[Any] = []
    async with _client(stage, published, wait=1e9) as client:

        async def call() -> None:
            results.append(await _result(client))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await until(lambda: published.demanded() == ["linear.1"], "the demand is there")
                tasks.start_soon(client.aclose)
    assert results == [STALE]


async def test_with_wait_0_the_result_is_returned_at_once(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a program that cannot wait would wait all the same."""
    published = publish(tmp_path, stage)
    returned = anyio.Event()

    async def rotate_later() -> None:
        with anyio.move_on_after(20):
            await returned.wait()
        await rotates(published, stage, 2, "fresh")

    async with _client(stage, published, wait=0) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(rotate_later)
        assert await _result(client) == STALE
        returned.set()


async def test_the_calls_of_a_token_share_one_wait_until_it_is_accepted(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a server that reports every token as bad would cost each call the whole wait."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, wait=60) as client:
        client._caller._reported = ("access-token-1", anyio.current_time() - 60)  # earlier calls have waited
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotates, published, stage, 2, "fresh")
            assert await _result(client) == STALE
        stage.play(tokens=["access-token-2"])
        client._caller._reported = ("access-token-2", anyio.current_time() - 60)
        await client.call_tool("add", {"a": 1, "b": 2})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotates, published, stage, 3, "fresh")
            assert await _result(client) == {"result": "fine"}


@pytest.mark.parametrize("option", [{"wait": -1}, {"patience": float("nan")}], ids=["wait", "patience"])
async def test_an_invalid_wait_or_patience_is_an_error_at_once(tmp_path: Path, option: dict[str, Any]) -> None:
    """If it failed, a wrong setting of a stdio server would show as a call that never ends."""
    child = StdioServerParameters(command="nothing")
    with pytest.raises(ValueError, match="seconds"):
        ReconnectingClient(child, Published(tmp_path).source(), token_variable="X", **option)


async def test_server_away_does_not_name_an_earlier_missing_token(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a person would read that there is no connection because of a token that is there."""
    published = publish(tmp_path, stage, None)
    stage.play(hang=True)
    async with _client(stage, published, patience=5) as client:
        assert client.state == "parked"
        published.put(1)
        with pytest.raises(ServerAway, match="not connected yet"):
            await client.list_tools()


async def test_server_away_names_the_reason_without_patience(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a person would read that there is no connection because the client is connected."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, patience=0, mode="legacy") as client:
        stage.play(forget=True)
        with pytest.raises(ServerAway, match="does not know this MCP session"):
            await client.list_tools()


CONNECTION_ERRORS = [
    ("http://127.0.0.1:9/mcp", "connection refused"),
    ("http://nowhere.invalid/mcp", "no such host|the name server does not answer"),
    ("https://127.0.0.1:{port}/mcp", "does not speak TLS: is it http://?"),
]


@pytest.mark.parametrize(("url", "reason"), CONNECTION_ERRORS)
async def test_server_away_explains_a_connection_error(tmp_path: Path, url: str, reason: str) -> None:
    """If it failed, a person would read the names of Python classes instead of what is wrong."""
    with RawServer(lambda connection, _: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), marker=b"") as plain:
        url = url.format(port=plain.token_endpoint.split(":")[2].split("/")[0])
        published = Published(tmp_path, url.removesuffix("/mcp"))
        published.put(1)
        async with ReconnectingClient(url, published.source(), patience=0) as client:
            with pytest.raises(
                ServerAway, match=f"^no connection to {url}: .*({re.escape(reason)})$".replace(r"\|", "|")
            ):
                await client.list_tools()


async def test_server_away_explains_a_missing_command(tmp_path: Path) -> None:
    """If it failed, a person would not learn that the command of a stdio server is wrong."""
    published = Published(tmp_path)
    published.put(1)
    child = StdioServerParameters(command="/nowhere/server")
    async with ReconnectingClient(child, published.source(), token_variable="X", patience=0) as client:
        with pytest.raises(ServerAway, match=r": No such file or directory: /nowhere/server$"):
            await client.list_tools()
