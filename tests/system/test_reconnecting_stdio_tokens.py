"""Which token the process of a stdio server has, and when another process replaces it."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from mcp import MCPError
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult

from shim import Removed
from shim.mcp import OutcomeUnknown, ReconnectingClient
from tests.support.mcp_child import child_client, held, whoami
from tests.support.published import DEAD, Published
from tests.support.stage import until

Mode = Literal["auto", "legacy"]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(("anyio_backend", "mode"), [("asyncio", "auto"), ("trio", "legacy")]),
]

OLD = {"token": "access-token-1", "alone": "yes"}
NEW = {"token": "access-token-2", "alone": "yes"}


class Clock:
    """The clock by which tokens expire in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        fake = SimpleNamespace(time=lambda: time.time() + self.ahead, monotonic=time.monotonic, sleep=time.sleep)
        monkeypatch.setattr("shim._source.time", fake)


class BadToken:
    """Recognises the answers of the tool ``check`` to the first token."""

    def __init__(self) -> None:
        self.answers: list[object] = []

    def __call__(self, answer: object) -> bool:
        text = answer.message if isinstance(answer, MCPError) else getattr(answer, "structured_content", None)
        is_bad = text in ("bad access-token-1", {"result": "bad access-token-1"})
        self.answers += [answer] * is_bad
        return is_bad


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = Published(tmp_path)
    made.put(1)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


def heard(client: ReconnectingClient, tasks: TaskGroup) -> list[str]:
    """Return the list to which the names of the client's events are added, until the client is closed."""
    names: list[str] = []
    events = client.events()

    async def listen() -> None:
        async for what, _ in events:
            names.append(what)

    tasks.start_soon(listen)
    return names


@pytest.mark.parametrize("expires_in", [3600.0, None], ids=["with expiry", "without expiry"])
async def test_a_process_takes_calls_after_a_rotation_while_a_call_holds_it(
    place: Path, published: Published, clock: Clock, mode: Mode, expires_in: float | None
) -> None:
    """If it failed, one long call would make all other calls fail after each rotation."""
    published.put(1, expires_at=None if expires_in is None else time.time() + expires_in)
    # The listener ends when the client is closed.
    async with anyio.create_task_group() as tasks, child_client(place, published, mode=mode) as client:
        assert await whoami(client) == OLD
        events = heard(client, tasks)
        async with held(client, place) as call:
            published.put(2)
            await until(lambda: events == ["rotated"], "the client sees the rotation")
            assert await whoami(client) == OLD
            published.put(3, expires_at=time.time() + 2e9)
            await until(lambda: events == ["rotated"] * 2, "the client sees the second rotation")
            if expires_in is None:
                clock.ahead = 1e9
            assert await whoami(client) == OLD
            assert (await client.list_tools()).tools
            assert (client.state, call.outcome, events) == ("connected", None, ["rotated"] * 2)
            call.release()
            await until(lambda: events[2:] == ["reconnecting", "connected"], "the process is replaced without a call")
        assert call.token == {"result": "access-token-1"}
        assert await whoami(client) == {"token": "access-token-3", "alone": "yes"}
    assert not place.exists(), "a process was left behind"


async def test_a_process_takes_no_calls_once_its_token_has_expired(
    place: Path, published: Published, clock: Clock, mode: Mode
) -> None:
    """If it failed, calls would get an expired token although a newer one is there."""
    async with child_client(place, published, mode=mode) as client:
        async with held(client, place) as call, anyio.create_task_group() as tasks:
            published.put(2, expires_at=time.time() + 2e9)
            assert await whoami(client) == OLD
            clock.ahead = 1e9
            await until(lambda: client.state == "reconnecting", "the process takes no more calls")
            results: list[Any] = []

            async def wait() -> None:
                results.append(await whoami(client))

            tasks.start_soon(wait)
            with anyio.move_on_after(2):  # long enough for a second process, which must not start
                await until(lambda: client.state != "reconnecting", "the client reconnects too early")
            assert (client.state, results, call.outcome) == ("reconnecting", [], None)
            call.release()
        assert call.token == {"result": "access-token-1"}
        assert results == [NEW]


@pytest.mark.parametrize("end", ["reauthorization_required", "removed"])
async def test_a_process_takes_no_calls_once_it_is_outdated_and_the_grant_has_ended(
    place: Path, published: Published, mode: Mode, end: str
) -> None:
    """If it failed, calls would use the old token of a grant that a person has removed."""
    async with child_client(place, published, mode=mode) as client:
        async with held(client, place) as call:
            published.put(2)
            assert await whoami(client) == OLD
            if end == "removed":
                published.put(3, state=end, access_token=None)
                await until(lambda: client.state == "parked", "the client waits for a person")
                with pytest.raises(Removed):
                    await whoami(client)
            else:
                published.put(2, state=end, error=DEAD)
                await until(lambda: client.state == "reconnecting", "the process takes no more calls")
            assert call.outcome is None
        assert call.token == {"result": "access-token-1"}
        if end == "removed":
            await until(lambda: not place.exists(), "the process has ended")
            with pytest.raises(Removed):
                await whoami(client)
        else:
            assert await whoami(client) == NEW, "a token that may be live was not used any more (I5)"


@pytest.mark.parametrize("how", ["result", "error"])
async def test_a_call_with_a_bad_token_is_repeated_in_the_next_process(
    place: Path, published: Published, mode: Mode, how: str
) -> None:
    """If it failed, a call would fail with a token that a server refuses, although there is a newer one."""
    bad = BadToken()

    async with child_client(place, published, mode=mode, is_auth_failure=bad) as client:
        async with held(client, place) as call, anyio.create_task_group() as tasks:
            published.put(2)
            assert await whoami(client) == OLD
            results: list[Any] = []

            async def check() -> None:
                result = await client.call_tool("check", {"bad": "access-token-1", "how": how})
                results.append(result.structured_content)

            tasks.start_soon(check)
            await until(lambda: client.state == "reconnecting", "the process takes no more calls")
            tasks.start_soon(check)
            with anyio.move_on_after(2):  # long enough for a second process, which must not start
                await until(lambda: client.state != "reconnecting", "the client reconnects too early")
            assert (client.state, results, call.outcome, len(bad.answers)) == ("reconnecting", [], None, 1)
            call.release()
        assert call.token == {"result": "access-token-1"}
        assert results == [{"result": "good access-token-2"}] * 2
        assert [isinstance(answer, MCPError) for answer in bad.answers] == [how == "error"], (
            "it was repeated in the old process"
        )
    assert published.demanded() == [], "there was another token already"


async def test_a_bad_token_that_is_replaced_later_gets_no_more_calls(
    place: Path, published: Published, mode: Mode
) -> None:
    """If it failed, calls would use a token that the server has refused, as long as one long call runs."""
    arguments = {"bad": "access-token-1", "how": "result"}
    async with child_client(place, published, mode=mode, is_auth_failure=BadToken(), wait=0) as client:
        async with held(client, place) as call:
            assert (await client.call_tool("check", arguments)).structured_content == {"result": "bad access-token-1"}
            assert published.demanded() == ["linear.1"]
            assert await whoami(client) == OLD, "there is no other token yet"
            published.put(2)
            await until(lambda: client.state == "reconnecting", "the process takes no more calls")
            assert call.outcome is None
        assert (await client.call_tool("check", arguments)).structured_content == {"result": "good access-token-2"}


async def test_a_call_from_a_callback_with_a_bad_token_is_not_repeated(
    place: Path, published: Published, mode: Mode
) -> None:
    """If it failed, a server would get a token that it has just refused, or the tool that asks would hang."""
    bad = BadToken()

    async def respond(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        published.put(2)
        answer = await client.call_tool("check", {"bad": "access-token-1", "how": "result"})
        assert answer.structured_content is not None
        return ElicitResult(
            action="accept", content={"said": str(await whoami(client)) + str(answer.structured_content)}
        )

    async with child_client(place, published, mode=mode, elicitation_callback=respond, is_auth_failure=bad) as client:
        asked = await client.call_tool("asks")
        assert asked.structured_content is not None
        assert asked.structured_content["result"] == str(OLD) + str({"result": "bad access-token-1"})
        assert len(bad.answers) == 1, "it was repeated in the same process"
        assert await whoami(client) == NEW


async def test_a_process_that_dies_after_a_rotation_is_replaced_at_once(
    place: Path, published: Published, mode: Mode
) -> None:
    """If it failed, the crash of a tool during a long call would leave the client with a process that is gone."""
    async with child_client(place, published, mode=mode) as client:
        async with held(client, place) as call:
            published.put(2)
            assert await whoami(client) == OLD
            with pytest.raises(OutcomeUnknown):
                await client.call_tool("crash")
            await until(lambda: call.outcome is not None, "the long call has ended too")
            assert isinstance(call.outcome, OutcomeUnknown)
        assert (await whoami(client))["token"] == "access-token-2"
    shutil.rmtree(place, ignore_errors=True)  # the first process could not remove it


async def test_closing_ends_an_outdated_process_and_its_calls(place: Path, published: Published, mode: Mode) -> None:
    """If it failed, a program would not end while a long call runs, or leave a process behind."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            client = child_client(place, published, mode=mode)
            await client.__aenter__()
            events = heard(client, tasks)
            async with held(client, place) as call:
                published.put(2)
                assert await whoami(client) == OLD
                await client.__aexit__()
                await until(lambda: call.outcome is not None, "the long call has ended")
        assert isinstance(call.outcome, OutcomeUnknown)
    assert client.state == "closed"
    assert set(events) <= {"rotated"}, "the client has reconnected"
    assert not place.exists(), "a process was left behind"


async def test_a_cancelled_call_holds_no_process(place: Path, published: Published, mode: Mode) -> None:
    """If it failed, a program that cancels a long call would keep the old token."""
    async with child_client(place, published, mode=mode) as client, held(client, place) as call:
        published.put(2)
        assert await whoami(client) == OLD
        call.scope.cancel()
        await until(lambda: call.scope.cancelled_caught, "the call is cancelled")
        assert await whoami(client) == NEW


async def test_a_process_waits_for_a_token_that_has_not_expired(place: Path, published: Published, mode: Mode) -> None:
    """If it failed, a tool would start with a dead token although refresher can give it a live one."""
    published.put(1, expires_at=time.time() - 1)
    async with anyio.create_task_group() as tasks:

        async def rotate() -> None:
            await until(lambda: published.demanded() == ["linear.1"], "the client demands a token")
            assert not place.exists(), "the process has started with the expired token"
            published.put(2)

        tasks.start_soon(rotate)
        async with child_client(place, published, mode=mode, wait=60) as client:
            assert await whoami(client) == NEW
    assert published.demanded() == ["linear.1"]


async def test_a_process_starts_with_an_expired_token_if_there_is_no_other(
    place: Path, published: Published, mode: Mode
) -> None:
    """If it failed, a clock that is wrong would stop every stdio server."""
    published.put(1, expires_at=time.time() - 1)
    async with child_client(place, published, mode=mode, wait=0.1) as client:
        assert await whoami(client) == OLD
        assert published.demanded() == ["linear.1"]
        published.put(2)
        assert await whoami(client) == NEW


async def test_a_grant_that_ends_during_the_wait_starts_no_process(tmp_path: Path, place: Path, mode: Mode) -> None:
    """If it failed, a tool would start with the expired token of a removed grant, or its client would not notice."""

    async def remove(published: Published) -> None:
        while not published.demanded():
            await anyio.lowlevel.checkpoint()  # as early as possible: the client has only begun to wait
        published.put(2, state="removed", access_token=None)

    for attempt in range(10):
        published = Published(tmp_path / str(attempt))
        published.put(1, expires_at=time.time() - 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remove, published)
            async with child_client(place, published, mode=mode, wait=60) as client:
                with pytest.raises(Removed):
                    await whoami(client)
                assert client.state == "parked"
                assert not place.exists()


async def test_closing_ends_the_wait_of_a_process_for_a_token(place: Path, published: Published, mode: Mode) -> None:
    """If it failed, a shutdown would wait for refresher, or start a process that nobody needs."""
    published.put(1, expires_at=time.time() - 1)
    client = child_client(place, published, mode=mode, wait=1e9)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.__aenter__)
            await until(lambda: published.demanded() == ["linear.1"], "the client demands a token")
            await client.__aexit__()
    assert client.state == "closed"
    assert not place.exists()
