"""What a server says about a token in other ways than a 401, on both protocols, as JSON and as an event stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError

from shim import InsufficientScope
from shim.mcp import OutcomeUnknown, ReconnectingClient
from tests.support.published import Published
from tests.support.stage import Stage, publish, rotates, until

pytestmark = pytest.mark.asyncio

INVALID = 'Bearer error="invalid_token", error_description="expired"'
LACKING = 'Bearer error="insufficient_scope", scope="files:write admin"'


@pytest.fixture(params=[True, False], ids=["json", "sse"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An MCP server for one test, which answers as JSON or as event streams."""
    with Stage(json_response=request.param) as made:
        made.play(tokens=["access-token-1"])
        yield made


@pytest.fixture(params=["legacy", "auto"], ids=["2025", "2026"])
def mode(request: pytest.FixtureRequest) -> Any:
    """The mode of the client, which selects the protocol."""
    return request.param


def _client(stage: Stage, published: Published, **options: Any) -> ReconnectingClient:
    return ReconnectingClient(stage.url, published.source(), **options)


def _stale(answer: object) -> bool:
    return "invalid token" in repr(answer)


async def _write(client: ReconnectingClient) -> None:
    assert (await client.call_tool("write", {"what": "once"})).structured_content == {"result": "wrote once"}


# --- a scope is missing -------------------------------------------------------------------------------------------


async def test_a_call_that_lacks_a_scope_says_which(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, an agent would read "Server returned an error response", and nobody would log in for the scope."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode) as client:
        await client.list_tools()
        session = client.session
        stage.play(refuse={'"write"': 403}, challenge=LACKING)
        with anyio.fail_after(60), pytest.raises(InsufficientScope) as caught:
            await _write(client)
        assert caught.value.scopes == ("files:write", "admin")
        assert caught.value.login_command == "refresher login linear --scope 'files:write admin'"
        assert caught.value.server == stage.url.removesuffix("/mcp")
        assert isinstance(client.source.problem(), InsufficientScope)
        # The token is good for everything else.
        await client.call_tool("add", {"a": 1, "b": 2})
        assert (client.session, client.state) == (session, "connected")
    assert published.demanded() == []


async def test_a_server_that_requires_a_scope_for_everything_says_which(
    tmp_path: Path, stage: Stage, mode: Any
) -> None:
    """If it failed, an agent whose login lacks a scope would read that the server is away."""
    published = publish(tmp_path, stage)
    stage.play(scopes=[])
    async with _client(stage, published, mode=mode) as client:
        with anyio.fail_after(60), pytest.raises(InsufficientScope) as caught:
            await client.list_tools()
        assert caught.value.login_command == "refresher login linear --scope use"
        await until(lambda: client.state == "parked", "the client sends nothing")
        # A person logs in with the scope.
        stage.play(scopes=["use"], tokens=["access-token-2"])
        published.put(2)
        await until(lambda: client.state == "connected", "the client connects")
        await _write(client)
    assert published.demanded() == []


async def test_a_missing_scope_after_the_call_was_executed_leaves_its_outcome_unknown(
    tmp_path: Path, stage: Stage, mode: Any
) -> None:
    """If it failed, an agent would repeat a write that was executed, after a login for a scope."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode) as client:
        stage.play(refuse={"tools/list": 403}, challenge=LACKING)
        with anyio.fail_after(60), pytest.raises(OutcomeUnknown):
            await client.call_tool("write", {"what": "once"})
    assert stage.log()["executed"] == {"once": 1}


# --- invalid_token at another status ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403])
async def test_a_call_recovers_from_invalid_token_at_another_status(
    tmp_path: Path, stage: Stage, mode: Any, status: int
) -> None:
    """If it failed, agents would never recover from an expired token at a server that answers 400 or 403 to it."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode) as client, anyio.create_task_group() as tasks:
        session = client.session
        stage.play(refuse={'"write"': status}, challenge=INVALID)

        async def rotate() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "the agent demands a token")
            stage.play(tokens=["access-token-2"], refuse={})
            published.put(2)

        tasks.start_soon(rotate)
        with anyio.fail_after(60):
            await _write(client)
        assert client.session is session
    assert stage.log()["executed"] == {"once": 1}


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_call_that_was_rejected_and_then_not_sent_is_repeated(
    tmp_path: Path, stage: Stage, mode: Any, status: int
) -> None:
    """If it failed, a server that restarts during a rotation would leave the outcome of every write unknown."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode) as client, anyio.create_task_group() as tasks:
        stage.play(refuse={'"write"': status}, challenge=INVALID)

        async def restart() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "the demand is there")
            stage.stop()
            published.put(2)
            await until(lambda: "refused" in str(client._supervisor.server_away()), "a repetition has failed")
            await anyio.to_thread.run_sync(stage.start, "access-token-2")

        tasks.start_soon(restart)
        with anyio.fail_after(60):
            await _write(client)
    assert stage.log()["executed"] == {"once": 1}


# --- is_auth_failure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["error", "result"])
async def test_is_auth_failure_sees_errors_and_results(tmp_path: Path, stage: Stage, mode: Any, how: str) -> None:
    """If it failed, an agent would get a JSON-RPC error about its token, although a newer token is one demand away."""
    published = publish(tmp_path, stage)
    async with (
        _client(stage, published, mode=mode, is_auth_failure=_stale) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(rotates, published, stage, 2, "fresh")
        with anyio.fail_after(60):
            assert (await client.call_tool("deny", {"how": how})).structured_content == {"result": "fine"}
    assert stage.log()["executed"] == {f"deny {how}": 2}


async def test_without_another_token_the_caller_gets_the_servers_error(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, a caller would not see what the server says."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode, is_auth_failure=_stale, wait=0.1) as client:
        with anyio.fail_after(60), pytest.raises(MCPError, match="invalid token"):
            await client.call_tool("deny", {"how": "error"})
    assert published.demanded() == ["linear.1"]
    assert stage.log()["executed"] == {"deny error": 1}


async def test_an_auth_failure_after_the_call_was_executed_does_not_repeat_the_call(
    tmp_path: Path, stage: Stage, mode: Any
) -> None:
    """If it failed, the first write of a session would be made twice if the listing after it reports the token."""
    published = publish(tmp_path, stage)
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "invalid token"}}
    async with (
        _client(stage, published, mode=mode, is_auth_failure=_stale) as client,
        anyio.create_task_group() as tasks,
    ):
        stage.play(answer={"tools/list": error})
        published.put(2)
        stage.play(tokens=["access-token-1", "access-token-2", "fresh"])
        with anyio.fail_after(60), pytest.raises(MCPError, match="invalid token"):
            await client.call_tool("write", {"what": "once"})
        tasks.cancel_scope.cancel()
    assert stage.log()["executed"] == {"once": 1}


async def test_an_auth_failure_in_the_handshake_demands_a_token(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, an agent that starts with a stale token would never connect, and nobody would demand a token."""
    published = publish(tmp_path, stage)
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "invalid token"}}
    stage.play(answer={'"initialize"': error, "server/discover": error})

    async def rotate() -> None:
        await until(lambda: published.demanded() == ["linear.1"], "the agent demands a token")
        stage.play(tokens=["access-token-2"], answer={})
        published.put(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rotate)
        async with _client(stage, published, mode=mode, is_auth_failure=_stale, wait=60) as client:
            with anyio.fail_after(60):
                await _write(client)


# --- smaller things -----------------------------------------------------------------------------------------------


async def test_leaving_with_an_expired_token_is_quick_and_demands_nothing(
    tmp_path: Path, stage: Stage, mode: Any
) -> None:
    """If it failed, each agent that stops after its token has expired would take 2 s and cost a rotation."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode, wait=60) as client:
        await client.list_tools()
        deletes = stage.log()["requests"].get("DELETE", 0)
        stage.play(tokens=[])
    log = stage.log()
    assert published.demanded() == []
    # Only the older protocol has sessions that a client ends.
    assert log["requests"].get("DELETE", 0) - deletes == (1 if mode == "legacy" else 0)


@pytest.mark.filterwarnings("ignore:.*2026-07-28")
async def test_an_empty_answer_to_a_ping_is_an_answer(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, a ping would report a server that answers as away, after a minute."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode=mode, patience=1) as client:
        stage.play(answer={'"ping"': None})
        with anyio.fail_after(60):
            await client.send_ping()
        stage.play(answer={'"ping"': {"jsonrpc": "2.0", "id": None, "error": {"code": -32601, "message": "no ping"}}})
        with pytest.raises(MCPError, match="no ping"):
            await client.send_ping()


@pytest.mark.filterwarnings("ignore:.*2026-07-28")
async def test_a_new_session_has_the_subscriptions_and_the_logging_level(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would hear nothing of its resources after a restart of the server."""
    published = publish(tmp_path, stage)
    async with _client(stage, published, mode="legacy") as client:
        for uri in ("stage://a", "stage://b", "stage://gone", "stage://left", "stage://closed"):
            await client.subscribe_resource(uri)
        await client.set_logging_level("debug")
        await client.set_logging_level("error")
        await client.unsubscribe_resource("stage://left")
        before = stage.log()["executed"]
        session = client.session
        # "fresh": the server does not know stage://gone any more, and requires another scope for stage://closed.
        stage.play(forget=True, tokens=["access-token-1", "fresh"], refuse={"stage://closed": 403}, challenge=LACKING)
        await _write(client)
        assert client.session is not session
        executed = stage.log()["executed"]
    repeated = {name for name, count in executed.items() if count > before.get(name, 0)}
    assert repeated == {"subscribe stage://a", "subscribe stage://b", "subscribe stage://gone", "level error", "once"}
