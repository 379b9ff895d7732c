"""``ReconnectingClient`` and the stream on which the server speaks first (GET of the older protocol)."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import httpx2
import mcp_types
import pytest

from shim import ReauthorizationRequired, _backoff, _server_stream
from shim.mcp import ClientEvent, ReconnectingClient
from shim.mcp._http_client import SessionHTTPClient
from tests.support.published import DEAD
from tests.support.stage import Stage, publish, until

pytestmark = pytest.mark.asyncio


class Ear:
    """Counts the notifications that a client hears."""

    def __init__(self) -> None:
        self.heard = 0

    async def __call__(self, message: object) -> None:
        self.heard += isinstance(message, mcp_types.ToolListChangedNotification)

    async def hears(self, client: ReconnectingClient) -> None:
        """Let the server notify until a notification is heard. The server drops it while it has no stream."""
        before = self.heard
        with anyio.fail_after(90):
            while self.heard == before:
                await client.call_tool("notify", {})
                with anyio.move_on_after(0.1):
                    while self.heard == before:
                        await anyio.sleep(0.01)


def _client(tmp_path: Path, stage: Stage, ear: Ear, wait: float = 15.0) -> ReconnectingClient:
    source = publish(tmp_path, stage).source()
    return ReconnectingClient(stage.url, source, mode="legacy", message_handler=ear, wait=wait)


@pytest.mark.parametrize("json_response", [True, False])
async def test_a_stream_that_is_cut_often_is_heard_again(tmp_path: Path, json_response: bool) -> None:
    """If it failed, an agent behind a load balancer would hear nothing after its second idle cut."""
    ear = Ear()
    with Stage(json_response=json_response) as stage:
        stage.play(tokens=["access-token-1"])
        async with _client(tmp_path, stage, ear) as client:
            events = client.events()
            with anyio.fail_after(90):
                await _cut_often(client, events, ear, stage)
            assert client.state == "connected"


async def _cut_often(client: ReconnectingClient, events: AsyncIterator[ClientEvent], ear: Ear, stage: Stage) -> None:
    await ear.hears(client)
    for _ in range(4):
        stage.play(cut_streams=True)
        assert (await anext(events)).what == "reconnecting"
        assert (await anext(events)).what == "connected"
        await ear.hears(client)


@pytest.mark.parametrize("status", [401, 503])
async def test_the_state_says_that_the_stream_is_down(
    tmp_path: Path, stage: Stage, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, an agent would be called connected while it hears nothing, or stay deaf after an outage."""
    monkeypatch.setattr(_backoff, "_LONGEST", 1.0)
    ear = Ear()
    async with _client(tmp_path, stage, ear, wait=0) as client:
        await ear.hears(client)
        refused = stage.log()["answers"].get(str(status), 0)
        stage.play(stream_status=status, cut_streams=True)
        await until(lambda: stage.log()["answers"].get(str(status), 0) >= refused + 3, "the client tries again")
        assert client.state == "reconnecting"
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        stage.play(stream_status=0)
        await until(lambda: client.state == "connected", "the stream is open")
        await ear.hears(client)


async def test_a_restarted_server_is_heard_without_a_call(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent that only listens would stay deaf after a restart of its server."""
    ear = Ear()
    async with _client(tmp_path, stage, ear) as client:
        await ear.hears(client)
        session = client.session
        stage.stop()
        await until(lambda: client.state == "reconnecting", "the client sees the outage")
        await anyio.to_thread.run_sync(stage.start, "access-token-1")
        await until(lambda: client.state == "connected" and client.session is not session, "a new session is there")
        await ear.hears(client)


async def test_a_stream_that_is_rejected_for_good_parks(tmp_path: Path, stage: Stage) -> None:
    """If it failed, an agent that only listens would not say that its login has ended."""
    published = publish(tmp_path, stage)
    async with ReconnectingClient(stage.url, published.source(), mode="legacy", wait=0) as client:
        published.put(1, state="reauthorization_required", error=DEAD)
        stage.play(tokens=[], cut_streams=True)
        await until(lambda: client.state == "parked", "the client is parked")
        with pytest.raises(ReauthorizationRequired):
            await client.list_tools()


async def test_a_server_without_a_stream_is_asked_once(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a client would count as reconnecting at every server that sends no notifications."""
    given_up = anyio.Event()

    async def sleep_forever() -> None:
        given_up.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(_server_stream, "anyio", SimpleNamespace(sleep_forever=sleep_forever))
    stage.play(stream_status=405)
    async with _client(tmp_path, stage, Ear()) as client:
        with anyio.fail_after(90):
            await given_up.wait()
        assert client.state == "connected"
    assert stage.log()["answers"]["405"] == 1


async def test_a_server_without_a_stream_that_fails_first_is_not_called_down(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, one 503 would leave a client reconnecting forever at a server that sends no notifications."""
    monkeypatch.setattr(_backoff, "_LONGEST", 1.0)
    stage.play(stream_status=503)
    async with _client(tmp_path, stage, Ear()) as client:
        await until(lambda: client.state == "reconnecting", "the stream is down")
        stage.play(stream_status=405)
        await until(lambda: client.state == "connected", "the client knows that there is no stream")


async def test_a_server_that_ends_each_stream_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, ``retry: 0`` would cost 400 requests a second, or the events between two streams would be lost."""
    asked: list[str | None] = []
    pauses: list[float] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers.get("last-event-id"))
        body = f"retry: 0\nid: {len(asked)}\ndata: one\n\ndata: half of an eve"
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(_server_stream, "anyio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(_backoff, "time", SimpleNamespace(monotonic=lambda: 0.0))
    events = []
    async with (
        anyio.create_task_group() as tasks,
        SessionHTTPClient(tasks, transport=httpx2.MockTransport(answer)) as http,
        http.sse("http://127.0.0.1/mcp") as source,
    ):
        async for event in source:
            events.append(event.data)
            if len(events) == 5:
                break
    assert events == ["one"] * 5
    assert asked == [None, "1", "2", "3", "4"]
    assert pauses == [1.0] * 4
