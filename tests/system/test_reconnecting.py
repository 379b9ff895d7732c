"""``ReconnectingClient`` with a real MCP server: rotations, restarts, outages and lost responses."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError

from shim import ReauthorizationRequired, TokenFileError, TokenRejected
from shim.mcp import ClientEvent, OutcomeUnknown, ReconnectingClient, ServerAway
from tests.support.published import DEAD
from tests.support.stage import Stage, add_when_back, publish, rotates, until

pytestmark = pytest.mark.asyncio

Operation = Callable[[ReconnectingClient], Awaitable[Any]]

PROTOCOLS = [
    pytest.param({"json_response": True}, "auto", id="2026 json"),
    pytest.param({}, "auto", id="2026 sse"),
    pytest.param({"json_response": True}, "legacy", id="2025 json"),
    pytest.param({}, "legacy", id="2025 sse"),
]

OPERATIONS: dict[str, Operation] = {
    "call a tool": lambda client: client.call_tool("add", {"a": 1, "b": 2}),
    "list tools": lambda client: client.list_tools(cache_mode="bypass"),
    "list resources": lambda client: client.list_resources(cache_mode="bypass"),
    "read a resource": lambda client: client.read_resource("stage://greeting", cache_mode="bypass"),
    "list prompts": lambda client: client.list_prompts(cache_mode="bypass"),
    "get a prompt": lambda client: client.get_prompt("ask", {"about": "tokens"}),
}


class EventCollector:
    """Collects the events of a client."""

    def __init__(self, client: ReconnectingClient) -> None:
        self.events: list[ClientEvent] = []
        self._source: AsyncIterator[ClientEvent] = client.events()

    async def __call__(self) -> None:
        async for event in self._source:
            self.events.append(event)

    def names(self) -> list[str]:
        """Return the names of the events."""
        return [event.what for event in self.events]


@pytest.mark.parametrize(("options", "mode"), PROTOCOLS)
async def test_every_operation_recovers_from_a_revoked_token_within_its_session(
    tmp_path: Path, options: dict[str, Any], mode: str
) -> None:
    """If it failed, an agent would see an error when a server revokes a token early."""
    with Stage(**options) as stage:
        stage.play(tokens=["access-token-1"])
        published = publish(tmp_path, stage)
        async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
            version = client.protocol_version
            session = client.session
            for number, operate in enumerate(OPERATIONS.values(), 2):
                stage.play(tokens=[])
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(rotates, published, stage, number)
                    await operate(client)
            assert version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
            assert client.session is session, "the client reconnected because of a token"
        assert published.demanded() == [f"linear.{number}" for number in range(1, 1 + len(OPERATIONS))]


async def test_a_rotation_does_not_interrupt_the_session(tmp_path: Path, stage: Stage) -> None:
    """If it failed, every rotation would interrupt agents."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        session = client.session
        for generation in range(2, 6):
            stage.play(tokens=[f"access-token-{generation}"])
            published.put(generation)
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert client.session is session
    assert stage.log()["answers"].get("401", 0) == 0
    assert published.demanded() == []


@pytest.mark.parametrize("calls", [10, 300])
async def test_many_calls_with_one_rejected_token_share_one_recovery(tmp_path: Path, stage: Stage, calls: int) -> None:
    """If it failed, three hundred calls would make as many demands, or wait one after the other."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client, anyio.create_task_group() as tasks:
        stage.play(tokens=[])
        tasks.start_soon(rotates, published, stage, 2)
        results = await asyncio.gather(*(client.call_tool("add", {"a": 1, "b": each}) for each in range(calls)))
    assert [result.structured_content for result in results] == [{"result": 1 + each} for each in range(calls)]
    assert published.demanded() == ["linear.1"]
    assert stage.log()["executed"]["add"] == calls


async def test_calls_report_a_missing_token_file_and_work_when_it_appears(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent that starts before its first token would need a restart."""
    published = publish(tmp_path, stage, None)
    async with ReconnectingClient(stage.url, published.source()) as client:
        with pytest.raises(TokenFileError, match="does refresher publish"):
            await client.call_tool("add", {"a": 1, "b": 2})
        assert client.state == "parked"
        assert stage.log()["requests"] == {}, "the server got a request without a token"
        published.put(1)
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


async def test_fifty_reconnects_neither_read_nor_demand_a_token(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, each reconnect would read the token again, or repeat a recovery."""
    published = publish(tmp_path, stage)
    source = published.source()
    reads = 0
    original = type(source)._read

    def counted(self: Any, status: Any) -> Any:
        nonlocal reads
        reads += 1
        return original(self, status)

    monkeypatch.setattr(type(source), "_read", counted)
    async with ReconnectingClient(stage.url, source, mode="legacy") as client:
        collector = EventCollector(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collector)
            for number in range(50):
                stage.play(forget=True)
                assert (await client.call_tool("add", {"a": number, "b": 1})).structured_content == {
                    "result": number + 1
                }
            assert client.source is source
            await until(lambda: collector.names().count("connected") == 50, "all events have arrived")
            tasks.cancel_scope.cancel()
        assert collector.names() == ["reconnecting", "connected"] * 50
    assert reads == 1
    assert published.demanded() == []
    assert stage.log()["executed"]["add"] == 50


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_client_reconnects_after_a_server_restart(tmp_path: Path, stage: Stage, mode: str) -> None:
    """If it failed, every deployment of a server would end the agents that use it."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        stage.stop()
        async with anyio.create_task_group() as tasks:

            async def restart() -> None:
                await until(
                    lambda: "connection refused" in str(client._supervisor.server_away()),
                    "a call has failed to connect",
                )
                await anyio.to_thread.run_sync(stage.start, "access-token-1")

            tasks.start_soon(restart)
            # A write: it may be repeated, because nothing was sent.
            written = await client.call_tool("write", {"what": "once"})
        assert written.structured_content == {"result": "wrote once"}
        assert stage.log()["executed"]["once"] == 1


async def test_a_call_to_a_hung_server_ends_at_its_timeout(tmp_path: Path, stage: Stage) -> None:
    """If it failed, one hung server would block an agent forever, even at the end."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), read_timeout_seconds=5) as client:
        stage.play(hang=True)
        with pytest.raises(MCPError, match="timed out"):
            await client.call_tool("add", {"a": 1, "b": 2})
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.3):
                await client.call_tool("slow", {"seconds": 60}, read_timeout_seconds=60)
        stage.play(hang=False)
        assert (await client.call_tool("add", {"a": 1, "b": 2}, 60)).structured_content == {"result": 3}
        stage.play(hang=True)
    assert client.state == "closed"


async def test_a_call_to_an_unreachable_server_ends_after_patience(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a call to a server that was switched off would never end."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), patience=0.5) as client:
        await until(lambda: client.state == "connected", "the client is connected")
        stage.stop()
        for name in ("add", "write"):
            with pytest.raises(ServerAway, match="no connection to http://127"):
                await client.call_tool(name, {"a": 1, "b": 2})
    async with ReconnectingClient(stage.url, published.source(), patience=0.5) as client:
        assert client.state == "reconnecting"
        with pytest.raises(ServerAway):
            await client.list_tools()
        with pytest.raises(ServerAway):
            _ = client.protocol_version


async def test_a_server_that_always_answers_401_gets_few_requests(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a failing server would get a storm of requests, and a grant a storm of demands."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), wait=0.2) as client:
        await client.list_tools()
        stage.play(status=401)
        for _ in range(50):
            with pytest.raises(TokenRejected) as caught:
                await client.call_tool("add", {"a": 1, "b": 2})
        assert json.loads(caught.value.as_json())["retry"] is True
        assert stage.log()["answers"]["401"] <= 4
        assert published.demanded() == ["linear.1"]
        stage.play(status=None, tokens=["access-token-2"])
        published.put(2)
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


async def test_a_dead_grant_parks_the_client_until_a_new_login(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a new login would help only the agents that start after it."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client, anyio.create_task_group() as tasks:
        collector = EventCollector(client)
        tasks.start_soon(collector)
        await client.list_tools()
        published.put(1, state="reauthorization_required", error=DEAD)
        await until(lambda: collector.names() == ["reauthorization_required"], "the event has arrived")
        assert (await client.list_tools(cache_mode="bypass")).tools, "a live token was not used any more (I5)"
        stage.play(tokens=[])
        with pytest.raises(ReauthorizationRequired):
            await client.call_tool("add", {"a": 1, "b": 2})
        requests = stage.log()["requests"]
        for _ in range(20):
            with pytest.raises(ReauthorizationRequired) as caught:
                await client.call_tool("add", {"a": 1, "b": 2})
        fields = json.loads(caught.value.as_json())
        assert (fields["needs_reauth"], fields["retry"]) == (True, False)
        assert fields["login_command"].startswith("refresher ")
        assert client.state == "parked"
        assert stage.log()["requests"] == requests, "the server got a request while the client was parked"
        stage.play(tokens=["access-token-9"])
        published.put(9, grant_id="another")
        await until(lambda: client.state == "connected", "the client reconnects by itself")
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        await until(
            lambda: sorted(collector.names()) == ["connected", "reauthorization_required", "restored"],
            "all events have arrived",
        )
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("options", "mode"), PROTOCOLS)
async def test_no_write_is_executed_twice_when_connections_are_cut(
    tmp_path: Path, options: dict[str, Any], mode: str
) -> None:
    """If it failed, a connection that breaks at the wrong moment would send an e-mail, or a payment, twice."""
    with Stage(**options) as stage:
        stage.play(tokens=["access-token-1"], cut=0.2)
        published = publish(tmp_path, stage)
        written: list[str] = []
        unknown: list[str] = []

        async def write(number: int) -> None:
            try:
                await client.call_tool("write", {"what": f"line {number}"})
                written.append(f"line {number}")
            except OutcomeUnknown:
                unknown.append(f"line {number}")

        async with ReconnectingClient(stage.url, published.source(), mode=mode) as client:
            session = client.session
            await client.list_tools()
            for start in range(0, 125, 25):
                await asyncio.gather(*(write(start + number) for number in range(25)))
            # Read-only calls are repeated until they succeed.
            added = await asyncio.gather(*(client.call_tool("add", {"a": 1, "b": each}) for each in range(25)))
            assert client.session is session, "one broken connection ended the session"
        assert [result.structured_content for result in added] == [{"result": 1 + each} for each in range(25)]
        executed = stage.log()["executed"]
        assert unknown, "no connection was cut"
        assert len(written) + len(unknown) == 125
        assert {name: executed.get(name) for name in written} == dict.fromkeys(written, 1)
        assert all(executed.get(name, 0) <= 1 for name in unknown)
        assert {executed.get(name, 0) for name in unknown} == {0, 1}, (
            "connections must be cut before and after the execution"
        )


async def test_a_server_that_forgets_every_session_gets_few_handshakes(tmp_path: Path) -> None:
    """If it failed, a load balancer that loses each session would get a handshake for each call."""
    with Stage(json_response=True) as stage:
        stage.play(tokens=["access-token-1"])
        published = publish(tmp_path, stage)
        async with ReconnectingClient(stage.url, published.source(), mode="legacy", patience=0.5) as client:
            stage.play(forgets=True)
            handshakes = stage.log()["answers"]["200"]
            with anyio.move_on_after(3):
                while True:
                    with pytest.raises(ServerAway, match="does not know this MCP session"):
                        await client.call_tool("add", {"a": 1, "b": 2})
            assert stage.log()["answers"]["200"] - handshakes < 8
            stage.play(forgets=False)
            await add_when_back(client)


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_a_cancelled_call_does_not_affect_other_calls(tmp_path: Path, stage: Stage, seconds: float) -> None:
    """If it failed, one cancelled call would break the session of all others, or keep a lock."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source()) as client:
        session, before = client.session, len(asyncio.all_tasks())
        for _ in range(10):
            with anyio.move_on_after(seconds):
                await client.call_tool("slow", {"seconds": 0.05})
            stage.play(tokens=[])
            with anyio.move_on_after(seconds):
                await client.call_tool("add", {"a": 1, "b": 2})
            stage.play(tokens=["access-token-1"])
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert client.session is session
        await until(lambda: len(asyncio.all_tasks()) <= before, "all tasks have ended")


async def test_closing_from_another_task_ends_every_call_and_every_task(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a shutdown would wait for calls whose results are not needed."""
    published = publish(tmp_path, stage)
    before = len(asyncio.all_tasks())
    errors: list[str] = []

    async def call(client: ReconnectingClient, name: str) -> None:
        try:
            await client.call_tool(name, {"seconds": 60})
        except (OutcomeUnknown, anyio.ClosedResourceError) as error:
            errors.append(type(error).__name__)

    async with ReconnectingClient(stage.url, published.source()) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call, client, "slow")
            await until(lambda: stage.log()["executed"].get("slow") == 5, "the calls are running")
            tasks.start_soon(client.aclose)
        assert client.state == "closed"
        with pytest.raises(anyio.ClosedResourceError):
            await client.list_tools()
    assert errors == ["OutcomeUnknown"] * 5
    await until(lambda: len(asyncio.all_tasks()) <= before, "all tasks have ended")


async def test_an_auth_failure_inside_a_result_is_recovered(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent would use the error text of a server that answers 200 to a stale token."""
    published = publish(tmp_path, stage)

    def stale(result: object) -> bool:
        return "invalid token" in repr(result)

    async with (
        ReconnectingClient(stage.url, published.source(), is_auth_failure=stale) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(rotates, published, stage, 2, "fresh")
        assert (await client.call_tool("stale")).structured_content == {"result": "fine"}
    assert stage.log()["executed"]["stale"] == 2


async def test_as_json_says_not_to_repeat_a_call_that_may_have_been_executed() -> None:
    """If it failed, a model would repeat a payment whose outcome is unknown."""
    assert json.loads(OutcomeUnknown("pay: it may have been executed").as_json()) == {
        "error": "pay: it may have been executed",
        "needs_reauth": False,
        "server": None,
        "login_command": None,
        "retry": False,
    }
    assert json.loads(ServerAway("no connection").as_json())["retry"] is True


async def test_the_client_has_every_method_of_the_sdks_client() -> None:
    """If it failed, an agent could not move from the SDK's client to this one by changing a name."""
    import inspect

    sdk_names = {name for name in vars(Client) if not name.startswith("_")} - set(Client.__dataclass_fields__)
    assert sdk_names <= set(dir(ReconnectingClient))
    for name in sdk_names:
        original = inspect.getattr_static(Client, name)
        if callable(original) and name != "listen":
            ours = inspect.signature(getattr(ReconnectingClient, name))
            assert list(ours.parameters) == list(inspect.signature(original).parameters), name
