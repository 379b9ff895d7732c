"""``ReconnectingClient`` in the traces that once broke a promise."""

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError

from shim import ReauthorizationRequired, TokenRejected, TokenUnavailable
from shim.mcp import OutcomeUnknown, ReconnectingClient, ServerAway, _supervisor
from tests.support.published import DEAD
from tests.support.stage import Stage, publish, rotates, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure nobody lives to see the next attempt, unless something ends the rest."""
    for bound in ("_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(_supervisor, bound, 1e6)


async def _three(client: ReconnectingClient) -> None:
    assert (await client.call_tool("add", {"a": 1, "b": 2}, 20)).structured_content == {"result": 3}


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "boom"}}, "boom"),
        ({"jsonrpc": "2.0", "id": 4711, "result": {"content": []}}, "a different request"),
        ({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}, "a different request"),
    ],
    ids=["an error to nobody", "a result to another", "a notification"],
)
async def test_an_answer_to_nobody_ends_the_call(tmp_path: Path, stage: Stage, says: Any, words: str) -> None:
    """If it failed, a careless server would let a call wait for ever."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        stage.play(says=says)
        with anyio.fail_after(30), pytest.raises(MCPError, match=words):
            await client.call_tool("add", {"a": 1, "b": 2})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("status", [401, 404, 503])
async def test_a_call_is_not_repeated_for_what_the_sdk_asks_after_it(
    tmp_path: Path, stage: Stage, mode: Any, status: int
) -> None:
    """If it failed, the first write of a session would be made twice where the listing after it meets trouble."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode, wait=0, patience=3) as client:
        stage.play(refuse={"tools/list": status})
        with pytest.raises(OutcomeUnknown if mode == "legacy" or status != 404 else Exception):
            await client.call_tool("write", {"what": "once"})
    assert stage.log()["executed"] == {"once": 1}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_answer_that_breaks_off_is_no_reason_to_write_again(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, a connection that breaks within the answer would make a write twice."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode, patience=3) as client:
        stage.play(breaks=True)
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("write", {"what": "once"})
    assert stage.log()["executed"] == {"once": 1}


async def test_a_tool_that_no_longer_says_that_it_only_reads_is_not_repeated(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a tool that came to write with an update of its server would be called twice."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=3) as client:
        await client.list_tools()
        stage.play(writes=["add"], breaks=True)
        await client.list_tools(cache_mode="bypass")
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("add", {"a": 1, "b": 2})
    assert stage.log()["executed"] == {"add": 1}


async def test_what_was_refused_and_then_not_sent_is_repeated(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a server that restarts during a rotation would leave every write in doubt."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client, anyio.create_task_group() as tasks:
        stage.play(tokens=[])

        async def restart() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "it is demanded")
            stage.stop()
            published.put(2)
            await until(lambda: "connection refused" in str(client._supervisor.server_away()), "it is repeated in vain")
            await anyio.to_thread.run_sync(stage.start)
            stage.play(tokens=["access-token-2"])

        tasks.start_soon(restart)
        assert (await client.call_tool("write", {"what": "once"})).structured_content == {"result": "wrote once"}
    assert stage.log()["executed"] == {"once": 1}


@pytest.mark.parametrize("bad", ["\ud800", object()], ids=["surrogate", "object"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_what_cannot_be_sent_is_told_to_its_caller_alone(
    tmp_path: Path, stage: Stage, mode: Any, bad: object
) -> None:
    """If it failed, one argument that is no JSON would end the calls of all others."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "slow", {"seconds": 0.5})
            await until(lambda: stage.log()["executed"].get("slow") == 1, "it runs")
            with pytest.raises(ValueError):  # noqa: PT011  three libraries say it in three ways
                await client.call_tool("add", {"a": 1, "b": bad})
        await _three(client)


async def test_a_courtesy_that_nobody_takes_holds_up_nobody(tmp_path: Path, stage: Stage) -> None:
    """If it failed, one cancelled call to a server that hangs would stop all calls for five minutes."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy") as client:
        before = stage.log()["requests"]["POST"]
        stage.play(hang=True)
        with anyio.move_on_after(0.3):
            await client.call_tool("add", {"a": 1, "b": 2})
        await until(lambda: stage.log()["requests"]["POST"] == before + 2, "the cancellation hangs, too")
        stage.play(hang=False)
        with anyio.fail_after(30):
            await _three(client)


async def test_a_redirect_within_the_origin_recovers_like_all_else(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an address without its last slash would make each rotation an error."""
    published = publish(tmp_path, stage)
    stage.play(redirect=True)
    async with ReconnectingClient(stage.url, published.source()) as client:
        await client.list_tools()
        stage.play(tokens=[])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotates, published, stage, 2)
            await _three(client)


@pytest.mark.parametrize("status", [401, 503])
async def test_an_outage_is_not_taken_for_an_older_protocol(tmp_path: Path, stage: Stage, status: int) -> None:
    """If it failed, one hiccup in a handshake would cost a session the features of its protocol, for its life."""
    published = publish(tmp_path, stage)
    stage.play(refuse={"server/discover": status})
    async with ReconnectingClient(stage.url, published.source(), wait=0) as client:
        assert client.state != "connected"
        stage.play(refuse={}, tokens=["access-token-2"])
        published.put(2)
        await until(lambda: client.state == "connected", "it connects")
        await _three(client)
        assert client.protocol_version == "2026-07-28"


@pytest.mark.parametrize(("mode", "words"), [("legacy", "does not know this MCP session"), ("auto", "error response")])
async def test_a_session_is_lost_in_words_only_where_there_is_one(
    tmp_path: Path, stage: Stage, mode: Any, words: str
) -> None:
    """If it failed, a server that says 400 to a forgotten session would never be met with a new one."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
        session = client.session
        stage.play(refuse={"tools/call": 400})
        with pytest.raises(MCPError, match=words):
            await client.call_tool("write", {"what": "once"})
        stage.play(refuse={})
        await _three(client)
        assert (client.session is session) == (mode == "auto")


async def test_who_gives_up_says_so_and_tries_on(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, nobody could see that a server is gone for long, or it would not be found again."""
    monkeypatch.setattr(_supervisor, "_FIRST_PAUSE", 0.01)
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy") as client:
        events = client.events()
        stage.play(forget=True)
        await client.list_tools()
        stage.stop()
        client._supervisor.retire(client._supervisor._connection, "as a child that ended")  # type: ignore[arg-type]
        assert str(client._supervisor.server_away()).endswith("as a child that ended"), (
            "the reason waits for another task"
        )
        await until(lambda: client.state == "gave_up", "it gives up")
        await anyio.to_thread.run_sync(stage.start)
        stage.play(tokens=["access-token-1"])
        await until(lambda: client.state == "connected", "it tries on")
        await _three(client)
        await client.aclose()
        assert [what async for what, _ in events].count("gave_up") == 1


@pytest.mark.usefixtures("no_hurry")
async def test_a_new_token_ends_the_rest_between_two_attempts(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would wait for half a minute after the login that it was waiting for."""
    published = publish(tmp_path, stage)
    stage.play(status=500)
    async with ReconnectingClient(stage.url, published.source()) as client:
        assert client.state == "reconnecting"
        stage.play(status=None, tokens=["access-token-2"])
        published.put(2)
        await until(lambda: client.state == "connected", "it tries again")


@pytest.mark.usefixtures("no_hurry")
async def test_a_session_on_which_every_call_hangs_has_not_worked(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a server that answers handshakes and nothing else would be met with a storm of them."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy", patience=2) as client:
        stage.play(hang=True)
        with pytest.raises(MCPError, match="timed out"):
            await client.call_tool("add", {"a": 1, "b": 2}, 0.3)
        stage.play(hang=False, forget=True)
        with pytest.raises(ServerAway):
            await client.call_tool("add", {"a": 1, "b": 2})


async def test_a_grant_that_dies_again_is_told_again(tmp_path: Path, stage: Stage) -> None:
    """If it failed, nobody would be called the second time."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        events = client.events()
        for generation in (1, 2):
            published.put(generation)
            with anyio.fail_after(30):
                while generation > 1 and (await anext(events)).what != "restored":
                    pass
                published.put(generation, state="reauthorization_required", error=DEAD)
                while (await anext(events)).what != "reauthorization_required":
                    pass


async def test_calls_that_are_refused_together_are_refused_once(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a hiccup of a server would lock out an agent with many calls for a minute."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), wait=0.5) as client:
        await client.list_tools()
        stage.play(refuse={"add": 401})
        calls = (client.call_tool("add", {"a": 1, "b": 2}) for _ in range(20))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {TokenRejected}
        assert (await client.call_tool("write", {"what": "x"})).structured_content == {"result": "wrote x"}


async def test_a_late_answer_does_not_unpark(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a call that began before the grant died would hide from all others that a person must come."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=3) as client:
        await client.list_tools()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "slow", {"seconds": 1.5})
            await until(lambda: stage.log()["executed"].get("slow") == 1, "it runs")
            published.put(1, state="reauthorization_required", error=DEAD)
            stage.play(tokens=[])
            with pytest.raises(ReauthorizationRequired):
                await client.call_tool("add", {"a": 1, "b": 2})
            assert client.state == "parked"
        with pytest.raises(ReauthorizationRequired):
            await client.call_tool("add", {"a": 1, "b": 2})
        assert client.state == "parked"


async def test_a_verdict_that_comes_after_the_refusal_parks(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a client of a dead grant would say that it is connected."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), wait=0) as client:
        await client.list_tools()
        stage.play(tokens=[])
        with pytest.raises(TokenRejected):
            await client.call_tool("add", {"a": 1, "b": 2})
        assert client.state == "connected"
        published.put(1, state="reauthorization_required", error=DEAD)
        await until(lambda: client.state == "parked", "it parks")


async def test_a_token_file_that_comes_to_be_for_the_server_wakes(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would have to be started again after its origins were corrected."""
    published = publish(tmp_path, stage)
    published.put(1, origins=("https://elsewhere.example",))
    async with ReconnectingClient(stage.url, published.source(), patience=20) as client:
        with pytest.raises(TokenUnavailable, match="elsewhere"):
            await _three(client)
        assert client.state == "parked"
        published.put(1)
        await until(lambda: client.state == "connected", "it wakes")


async def test_two_tasks_may_share_one_stream_of_events(tmp_path: Path, stage: Stage) -> None:
    """If it failed, one of two readers would never be woken again, not even at the end."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        events = client.events()

        async def read() -> None:
            async for _ in events:
                pass

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(client.aclose)
