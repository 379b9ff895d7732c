"""``ReconnectingClient`` with a stdio server, whose token is fixed when its process starts."""

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client import CacheConfig, ClientRequestContext, InMemoryResponseCacheStore
from mcp.client.subscriptions import ToolsListChanged
from mcp_types import ElicitRequestParams, ElicitResult

from shim import ReauthorizationRequired, TokenFileError
from shim.mcp import OutcomeUnknown, ReconnectingClient, TokenSources
from tests.support.mcp_child import child_client, whoami
from tests.support.published import DEAD, Published

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_from_a_callback_uses_the_same_process(tmp_path: Path, mode: Any) -> None:
    """If it failed, a tool that asks the program would hang if its token rotates before the answer."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)

    answered = anyio.Event()

    async def later() -> None:
        await answered.wait()
        assert await whoami(client) == {"token": "access-token-2", "alone": "yes"}

    async def respond(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        published.put(2)
        tasks.start_soon(later)
        answer = await whoami(client)
        return ElicitResult(action="accept", content={"said": answer["token"]})

    def stale(result: object) -> bool:
        return "alone" in repr(result) and "access-token-1" in repr(result)

    async with (
        child_client(
            place, published, mode=mode, elicitation_callback=respond, patience=60, is_auth_failure=stale
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        asked = await client.call_tool("asks")
        answered.set()
        assert asked.structured_content == {"result": "access-token-1"}
    assert published.demanded() == [], "there was another token already"


async def test_a_callback_of_one_server_can_call_another_server(tmp_path: Path) -> None:
    """If it failed, a call from a callback would go to the wrong server."""
    one, other = Published(tmp_path / "one"), Published(tmp_path / "other")
    one.put(1)
    other.put(7)

    async def respond(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"said": (await whoami(asked))["token"]})

    async with (
        child_client(tmp_path / "first", one, elicitation_callback=respond) as asking,
        child_client(tmp_path / "second", other) as asked,
    ):
        assert (await asking.call_tool("asks")).structured_content == {"result": "access-token-7"}


async def test_a_process_that_dies_during_a_callback_is_replaced(tmp_path: Path) -> None:
    """If it failed, the crash of a tool would block the callback that answers it."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)
    tokens: list[str] = []

    async def respond(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("crash")
        place.rmdir()  # the process could not remove it
        tokens.append((await whoami(client))["token"])
        return ElicitResult(action="accept", content={"said": tokens[0]})

    async with child_client(place, published, elicitation_callback=respond, patience=60) as client:
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("asks")
    assert tokens == ["access-token-1"]


async def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    """If it failed, an agent would need a restart after each crash of its tools."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)
    async with child_client(place, published) as client:
        assert (await whoami(client))["token"] == "access-token-1"
        await client.list_tools()
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("crash")
        place.rmdir()  # the process could not remove it
        assert await whoami(client) == {"token": "access-token-1", "alone": "yes"}


async def test_invalid_bytes_on_stdout_are_ignored(tmp_path: Path) -> None:
    """If it failed, one invalid byte on stdout would block every call forever."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)
    async with child_client(place, published) as client:
        with anyio.fail_after(60):
            assert (await client.call_tool("babble")).structured_content == {"result": "said"}
            assert (await whoami(client))["token"] == "access-token-1"


async def test_a_process_is_not_started_without_a_token(tmp_path: Path) -> None:
    """If it failed, a tool would start without its token, and fail with an error of its own."""
    published, place = Published(tmp_path), tmp_path / "place"
    async with child_client(place, published) as client:
        with pytest.raises(TokenFileError):
            await whoami(client)
        assert not place.exists()
        published.put(3)
        assert (await whoami(client))["token"] == "access-token-3"
        published.put(3, state="reauthorization_required", error=DEAD, access_token=None)
        with pytest.raises(ReauthorizationRequired):
            await whoami(client)
        published.put(4, grant_id="another")
        assert (await whoami(client))["token"] == "access-token-4"


async def test_a_missing_command_is_not_started_in_a_loop(tmp_path: Path) -> None:
    """If it failed, a misspelt command would keep a processor busy."""
    published = Published(tmp_path)
    published.put(1)
    child = StdioServerParameters(command=str(tmp_path / "nothing"))
    async with ReconnectingClient(child, published.source(), token_variable="X", patience=0.2) as client:
        assert client.state == "reconnecting"
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="token_variable"):
        ReconnectingClient(child, published.source())
    with pytest.raises(ValueError, match="token_variable"):
        ReconnectingClient("http://127.0.0.1/mcp", published.source(), token_variable="X")


async def test_a_subscription_does_not_keep_a_process_from_being_replaced(tmp_path: Path) -> None:
    """If it failed, one open subscription would block every call after a rotation, or end with the old process."""
    published, place = Published(tmp_path), tmp_path / "place"
    published.put(1)
    async with (
        child_client(place, published, patience=60) as client,
        client.listen(tools_list_changed=True) as subscription,
    ):
        published.put(2)
        assert (await whoami(client))["token"] == "access-token-2"
        with anyio.fail_after(90):
            assert await anext(subscription) == ToolsListChanged()


async def test_two_processes_of_one_command_share_no_cached_responses(tmp_path: Path) -> None:
    """If it failed, an agent with a shared cache would get the tools of another server."""
    published = Published(tmp_path)
    published.put(1)
    cache = CacheConfig(store=InMemoryResponseCacheStore(), partition="one user")
    one, other = (child_client(tmp_path / place, published, cache=cache)._supervisor for place in ("one", "other"))
    assert one._options["cache"].target_id != other._options["cache"].target_id


async def test_token_sources_have_one_source_for_each_name(tmp_path: Path) -> None:
    """If it failed, two clients of one server would make two demands, and remember different rejections."""
    published = Published(tmp_path)
    published.put(1)
    sources = TokenSources(tokens_dir=published.tokens, demands_dir=published.demands)
    assert sources["linear"] is sources["linear"]
    token = sources["linear"].current()
    assert token is not None
    assert (token.generation, len(sources), "linear" in sources) == (1, 1, True)
    before = sources["linear"]
    sources.drop("linear")
    sources.drop("linear")
    assert "linear" not in sources
    assert sources["linear"] is not before
    with pytest.raises(ValueError, match="not a valid name"):
        sources["../linear"]
