"""``ReconnectingClient`` in sequences that once failed."""

import asyncio
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import MCPError

from shim import ReauthorizationRequired, TokenRejected, TokenUnavailable, _backoff
from shim.mcp import OutcomeUnknown, ReconnectingClient, ServerAway, _supervisor
from shim.mcp._http_client import SessionHTTPClient
from tests.support.published import DEAD
from tests.support.stage import Stage, add_when_back, publish, rotates, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def endless_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the backoff so long that the next attempt comes only if something ends the backoff."""
    for bound in ("_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(_supervisor, bound, 1e6)


async def _add(client: ReconnectingClient) -> None:
    assert (await client.call_tool("add", {"a": 1, "b": 2}, 60)).structured_content == {"result": 3}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "boom"}}, "boom"),
        ({"jsonrpc": "2.0", "id": 4711, "result": {"content": []}}, "a different request"),
        ({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}, "not a JSON-RPC response"),
    ],
    ids=["error without an id", "result with another id", "notification"],
)
async def test_a_response_with_a_wrong_id_ends_the_call(tmp_path: Path, stage: Stage, body: Any, words: str) -> None:
    """If it failed, a server with a bug would let a call wait forever."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        stage.play(says=body)
        with anyio.fail_after(60), pytest.raises((MCPError, OutcomeUnknown), match=words):
            await client.call_tool("add", {"a": 1, "b": 2})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("status", [401, 404, 503])
async def test_a_failed_request_after_a_call_does_not_repeat_the_call(
    tmp_path: Path, stage: Stage, mode: Any, status: int
) -> None:
    """If it failed, the first write of a session would be made twice if the listing after it fails."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode, wait=0, patience=3) as client:
        stage.play(refuse={"tools/list": status})
        with pytest.raises(OutcomeUnknown if mode == "legacy" or status != 404 else Exception):
            await client.call_tool("write", {"what": "once"})
    assert stage.log()["executed"] == {"once": 1}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_truncated_response_does_not_repeat_a_write(tmp_path: Path, stage: Stage, mode: Any) -> None:
    """If it failed, a connection that breaks within the response would make a write twice."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode, patience=3) as client:
        stage.play(breaks=True)
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("write", {"what": "once"})
    assert stage.log()["executed"] == {"once": 1}


async def test_a_tool_that_lost_its_read_only_hint_is_not_repeated(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a tool that writes since an update of its server would be called twice."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=3) as client:
        await client.list_tools()
        stage.play(writes=["add"], breaks=True)
        await client.list_tools(cache_mode="bypass")
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("add", {"a": 1, "b": 2})
    assert stage.log()["executed"] == {"add": 1}


async def test_a_call_that_was_rejected_and_then_not_sent_is_repeated(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a server that restarts during a rotation would leave the outcome of every write unknown."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client, anyio.create_task_group() as tasks:
        stage.play(tokens=[])

        async def restart() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "the demand is there")
            stage.stop()
            published.put(2)
            await until(
                lambda: "connection refused" in str(client._supervisor.server_away()), "a repetition has failed"
            )
            await anyio.to_thread.run_sync(stage.start, "access-token-2")

        tasks.start_soon(restart)
        assert (await client.call_tool("write", {"what": "once"})).structured_content == {"result": "wrote once"}
    assert stage.log()["executed"] == {"once": 1}


@pytest.mark.parametrize("bad", ["\ud800", object()], ids=["surrogate", "object"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_argument_that_is_not_json_is_an_error_of_its_call_only(
    tmp_path: Path, stage: Stage, mode: Any, bad: object
) -> None:
    """If it failed, one invalid argument would end the calls of all others."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "slow", {"seconds": 0.5})
            await until(lambda: stage.log()["executed"].get("slow") == 1, "the call is running")
            with pytest.raises(ValueError):  # noqa: PT011  three libraries have three messages
                await client.call_tool("add", {"a": 1, "b": bad})
        await _add(client)


async def test_a_cancellation_that_the_server_ignores_does_not_block_other_calls(tmp_path: Path, stage: Stage) -> None:
    """If it failed, one cancelled call to a hung server would block all calls for five minutes."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy") as client:
        before = stage.log()["requests"]["POST"]
        stage.play(hang=True)
        with anyio.move_on_after(0.3):
            await client.call_tool("add", {"a": 1, "b": 2})
        await until(lambda: stage.log()["requests"]["POST"] == before + 2, "the cancellation hangs too")
        stage.play(hang=False)
        with anyio.fail_after(60):
            await _add(client)


async def test_a_call_through_a_redirect_within_the_origin_recovers(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a URL without its last slash would make each rotation an error."""
    published = publish(tmp_path, stage)
    stage.play(redirect=True)
    async with ReconnectingClient(stage.url, published.source()) as client:
        await client.list_tools()
        stage.play(tokens=[])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotates, published, stage, 2)
            await _add(client)


@pytest.mark.parametrize("status", [401, 503])
async def test_an_outage_does_not_select_the_older_protocol(tmp_path: Path, stage: Stage, status: int) -> None:
    """If it failed, one failed handshake would cost a session the features of its protocol, until it ends."""
    published = publish(tmp_path, stage)
    stage.play(refuse={"server/discover": status})
    async with ReconnectingClient(stage.url, published.source(), wait=0) as client:
        assert client.state != "connected"
        stage.play(refuse={}, tokens=["access-token-2"])
        published.put(2)
        await until(lambda: client.state == "connected", "the client connects")
        await _add(client)
        assert client.protocol_version == "2026-07-28"


@pytest.mark.parametrize(("mode", "words"), [("legacy", "does not know this MCP session"), ("auto", "error response")])
async def test_a_400_about_the_session_reconnects_only_if_there_is_a_session(
    tmp_path: Path, stage: Stage, mode: Any, words: str
) -> None:
    """If it failed, a server that answers 400 to a forgotten session would never get a new one."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode, patience=0.5) as client:
        session = client.session
        stage.play(refuse={"tools/call": 400})
        with pytest.raises((MCPError, ServerAway), match=words):
            await client.call_tool("write", {"what": "once"})
        stage.play(refuse={})
        await add_when_back(client)
        assert (client.session is session) == (mode == "auto")


async def test_after_giving_up_the_client_says_so_and_still_reconnects(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, nobody could see that a server is gone, or the client would not reconnect to it."""
    monkeypatch.setattr(_supervisor, "_FIRST_PAUSE", 0.01)
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy") as client:
        events = client.events()
        stage.play(forget=True)
        await client.list_tools()
        stage.stop()
        client._supervisor.retire(client._supervisor._connection, "the process ended")  # type: ignore[arg-type]
        assert str(client._supervisor.server_away()).endswith("the process ended"), (
            "the reason is not available at once"
        )
        await until(lambda: client.state == "gave_up", "the client gives up")
        await anyio.to_thread.run_sync(stage.start, "access-token-1")
        await until(lambda: client.state == "connected", "the client reconnects")
        await _add(client)
        await client.aclose()
        assert [what async for what, _ in events].count("gave_up") == 1


@pytest.mark.usefixtures("endless_backoff")
async def test_a_new_token_ends_the_backoff(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would wait half a minute longer after a new login."""
    published = publish(tmp_path, stage)
    stage.play(status=500)
    async with ReconnectingClient(stage.url, published.source()) as client:
        assert client.state == "reconnecting"
        stage.play(status=None, tokens=["access-token-2"])
        published.put(2)
        await until(lambda: client.state == "connected", "the client reconnects")


@pytest.mark.usefixtures("endless_backoff")
async def test_reconnecting_backs_off_if_every_call_hangs(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a server that answers handshakes and nothing else would get a storm of them."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy", patience=2) as client:
        stage.play(hang=True)
        with pytest.raises(MCPError, match="timed out"):
            await client.call_tool("add", {"a": 1, "b": 2}, 0.3)
        stage.play(hang=False, forget=True)
        with pytest.raises(ServerAway):
            await client.call_tool("add", {"a": 1, "b": 2})


async def test_a_second_permanent_error_is_an_event_too(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a person would not learn of the second permanent error."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        events = client.events()
        for generation in (1, 2):
            published.put(generation)
            with anyio.fail_after(60):
                while generation > 1 and (await anext(events)).what != "restored":
                    pass
                published.put(generation, state="reauthorization_required", error=DEAD)
                while (await anext(events)).what != "reauthorization_required":
                    pass


async def test_calls_that_are_rejected_together_count_as_one_rejection(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a short outage of a server would lock out an agent with many calls for a minute."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), wait=0.5) as client:
        await client.list_tools()
        stage.play(refuse={"add": 401})
        calls = (client.call_tool("add", {"a": 1, "b": 2}) for _ in range(20))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {TokenRejected}
        assert (await client.call_tool("write", {"what": "x"})).structured_content == {"result": "wrote x"}


async def test_a_late_response_does_not_end_the_parked_state(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a call that began before the permanent error would hide that a person must log in."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=3) as client:
        await client.list_tools()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "slow", {"seconds": 1.5})
            await until(lambda: stage.log()["executed"].get("slow") == 1, "the call is running")
            published.put(1, state="reauthorization_required", error=DEAD)
            stage.play(tokens=[])
            with pytest.raises(ReauthorizationRequired):
                await client.call_tool("add", {"a": 1, "b": 2})
            assert client.state == "parked"
        with pytest.raises(ReauthorizationRequired):
            await client.call_tool("add", {"a": 1, "b": 2})
        assert client.state == "parked"


async def test_a_permanent_error_after_the_rejection_parks_the_client(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a client of a dead grant would say that it is connected."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), wait=0) as client:
        await client.list_tools()
        stage.play(tokens=[])
        with pytest.raises(TokenRejected):
            await client.call_tool("add", {"a": 1, "b": 2})
        assert client.state == "connected"
        published.put(1, state="reauthorization_required", error=DEAD)
        await until(lambda: client.state == "parked", "the client is parked")


async def test_a_changed_origin_in_the_token_file_ends_the_parked_state(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would need a restart after its origins were corrected."""
    published = publish(tmp_path, stage)
    published.put(1, origins=("https://elsewhere.example",))
    async with ReconnectingClient(stage.url, published.source(), patience=60) as client:
        with pytest.raises(TokenUnavailable, match="elsewhere"):
            await _add(client)
        assert client.state == "parked"
        published.put(1)
        await until(lambda: client.state == "connected", "the client reconnects")


async def test_two_tasks_can_share_one_event_iterator(tmp_path: Path, stage: Stage) -> None:
    """If it failed, one of two readers would never wake up, not even at the end."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        events = client.events()

        async def read() -> None:
            async for _ in events:
                pass

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(client.aclose)


async def test_a_500_leaves_the_outcome_of_a_write_open(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would repeat a call that a server executed before it failed."""
    async with ReconnectingClient(stage.url, publish(tmp_path, stage).source()) as client:
        stage.play(once={'"write"': 500})
        with pytest.raises(OutcomeUnknown):
            await client.call_tool("write", {"what": "this"})
        await client.list_tools()
        stage.play(once={'"add"': 500})
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


async def test_a_server_that_restarts_twice_in_a_call_is_asked_again(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a call would end because its second session was lost too, although it was never executed."""
    async with ReconnectingClient(stage.url, publish(tmp_path, stage).source(), mode="legacy") as client:
        stage.play(refuse={'"write"': 404})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "write", {"what": "this"})
            await until(lambda: stage.log()["answers"].get("404", 0) >= 3, "the third session is lost")
            stage.play(refuse={})
    assert stage.log()["executed"]["this"] == 1


async def test_a_response_that_is_nested_too_deeply_ends_one_call() -> None:
    """If it failed, one response would end the session with all its calls."""
    body = b'{"result":' + b"[" * 100_000

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=body)

    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    async with (
        anyio.create_task_group() as tasks,
        SessionHTTPClient(tasks, transport=httpx2.MockTransport(answer)) as http,
    ):
        assert "not a JSON-RPC response" in (await http.post("http://127.0.0.1/mcp", json=call)).text


async def test_an_answer_to_one_call_ends_the_pauses_of_others(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, calls would wait on, or end, although the server is there again."""
    for bound in ("_FIRST_RETRY", "_LONGEST_RETRY"):
        monkeypatch.setattr(_backoff, bound, 1e6)
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=1e9) as client:
        stage.stop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_add, client)
            await until(lambda: "refused" in client._supervisor.last_failure, "the call waits")
            await anyio.to_thread.run_sync(stage.start, "access-token-1")
            with anyio.fail_after(90):
                await _add(client)
