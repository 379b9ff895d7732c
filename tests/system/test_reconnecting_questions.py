"""``ReconnectingClient`` and the questions that a server asks during a call."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from mcp.client import ClientRequestContext
from mcp.client.session import ElicitationFnT
from mcp_types import ElicitRequestParams, ElicitResult

from shim.mcp import OutcomeUnknown, ReconnectingClient
from tests.support.published import Published
from tests.support.stage import Stage, publish, until

pytestmark = pytest.mark.asyncio

Mode = Literal["auto", "legacy"]
ANSWER = '"some words"'


TOOLS = {"json": "asks_aside", "sse": "asks"}
"""The tools that ask in the older protocol: a response in JSON has no place for a question."""


@pytest.fixture(params=["json", "sse"])
def asking(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A server that asks during a call, and answers in JSON or in a stream."""
    with Stage(json_response=request.param == "json") as made:
        made.play(tokens=["access-token-1"])
        yield made


@pytest.fixture
def tool(request: pytest.FixtureRequest) -> str:
    """The tool that asks."""
    return TOOLS[request.node.callspec.params["asking"]]


class Person:
    """Answers the questions."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.asked += 1
        return ElicitResult(action="accept", content={"said": "some words"})


def _client(
    published: Published, stage: Stage, mode: Mode, person: ElicitationFnT, **options: Any
) -> ReconnectingClient:
    return ReconnectingClient(stage.url, published.source(), mode=mode, elicitation_callback=person, **options)


@asynccontextmanager
async def _older(published: Published, stage: Stage, person: ElicitationFnT, **options: Any) -> AsyncIterator[Any]:
    """Connect with the older protocol, and wait for the stream: a server drops a question that it cannot send."""
    async with _client(published, stage, "legacy", person, **options) as client:
        await until(lambda: stage.log()["listening"], "the stream is open")
        yield client


@pytest.mark.parametrize("status", [503, 500, 408, 401, 0])
async def test_an_answer_is_sent_until_the_server_has_it(tmp_path: Path, asking: Stage, tool: str, status: int) -> None:
    """If it failed, one lost answer to the server's question would leave a call without an end."""
    person = Person()
    async with _older(publish(tmp_path, asking), asking, person, wait=0) as client:
        asking.play(once={ANSWER: status})
        with anyio.fail_after(90):
            result = await client.call_tool(tool)
        assert result.structured_content == {"result": "some words"}
    assert person.asked == 1
    assert asking.log()["answers"][str(status)] == 1
    assert asking.log()["executed"]["asks"] == 1


@pytest.mark.parametrize("status", [503, 413, 404])
async def test_a_call_ends_if_the_server_does_not_take_the_answer(
    tmp_path: Path, asking: Stage, tool: str, status: int
) -> None:
    """If it failed, an agent would wait forever for a server that does not take its answer."""
    async with _older(publish(tmp_path, asking), asking, Person(), patience=0.5) as client:
        asking.play(refuse={ANSWER: status})
        with anyio.fail_after(90), pytest.raises(OutcomeUnknown, match="answer to its question"):
            await client.call_tool(tool)
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


async def test_an_answer_that_waits_does_not_stop_other_calls(tmp_path: Path, asking: Stage, tool: str) -> None:
    """If it failed, all calls would wait while one answer cannot be sent."""
    async with _older(publish(tmp_path, asking), asking, Person()) as client:
        asking.play(refuse={ANSWER: 503})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, tool)
            await until(_counted(asking, "503", 2), "the answer is refused again")
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
            asking.play(refuse={})


async def test_an_answer_follows_a_redirect(tmp_path: Path, asking: Stage, tool: str) -> None:
    """If it failed, a server whose address ends in a slash would get no answers."""
    async with _older(publish(tmp_path, asking), asking, Person()) as client:
        asking.play(redirect=True)
        with anyio.fail_after(90):
            assert (await client.call_tool(tool)).structured_content == {"result": "some words"}


async def test_an_answer_to_the_newer_protocol_is_repeated_only_if_it_was_not_sent(
    tmp_path: Path, asking: Stage
) -> None:
    """If it failed, a person would answer twice, or a tool that changes something would be executed twice."""
    person, published = Person(), publish(tmp_path, asking)
    async with _client(published, asking, "auto", person) as client:
        asking.play(once={ANSWER: 503})
        with anyio.fail_after(90), pytest.raises(OutcomeUnknown):
            await client.call_tool("asks")
        assert person.asked == 1

        async def stop(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
            await anyio.to_thread.run_sync(asking.stop)
            tasks.start_soon(anyio.to_thread.run_sync, asking.start, "access-token-1")
            return await person(context, params)

    async with _client(published, asking, "auto", stop) as client, anyio.create_task_group() as tasks:
        with anyio.fail_after(90):
            assert (await client.call_tool("asks")).structured_content == {"result": "some words"}
    assert person.asked == 2
    assert asking.log()["executed"]["asks"] == 1


async def test_a_person_answers_once_if_the_tool_only_reads(tmp_path: Path, asking: Stage) -> None:
    """If it failed, a person would have to answer again after each lost response."""
    person = Person()
    async with _client(publish(tmp_path, asking), asking, "auto", person, reads=lambda _: True) as client:
        asking.play(once={ANSWER: 503})
        with anyio.fail_after(90):
            assert (await client.call_tool("asks")).structured_content == {"result": "some words"}
    assert person.asked == 1


def _counted(stage: Stage, status: str, times: int) -> Callable[[], bool]:
    return lambda: stage.log()["answers"].get(status, 0) >= times
