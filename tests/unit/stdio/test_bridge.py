"""``refresher stdio``: what crosses the bridge, and what happens when the server fails."""

from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from refresher.stdio import messages
from refresher.stdio.tools import Tools
from shim import _backoff
from tests.support.published import DEAD
from tests.unit.stdio.scripted import INITIALIZE, READY, Server, bridged, call, stream

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backoff, "_FIRST_RETRY", 0.001)


def breaks(_: Any) -> httpx2.Response:
    """Lose the answer."""
    return stream()


async def test_unknown_methods_and_fields_pass_unchanged(tmp_path: Path) -> None:
    """If it failed, an extension of the protocol would not work through stdio."""
    server = Server()
    async with bridged(tmp_path, server) as (client, _):
        answer = await client.asks(INITIALIZE)
        assert answer["result"]["extra"] == 1
        await client.says(READY)
        odd = {"jsonrpc": "2.0", "id": 7, "method": "x/new", "params": {"é": [1.5, None]}, "extra": {"a": 1}}
        assert (await client.asks(odd))["result"] == {"echo": {"é": [1.5, None]}}
    assert server.received[0][1] == INITIALIZE
    sent, headers = next((message, headers) for method, message, headers in server.received if method == "x/new")
    assert sent == odd
    assert (headers["mcp-session-id"], headers["mcp-protocol-version"]) == ("session-1", "2025-11-25")


async def test_a_restart_of_the_server_goes_unnoticed(tmp_path: Path) -> None:
    """If it failed, a restart of the server would end every session of every client."""
    server = Server()
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.asks(call(1, method="logging/setLevel", level="error"))
        await client.asks(call(2, method="resources/subscribe", uri="a://b"))
        server.restart()
        assert "result" in await client.asks(call(3))
        await client.hears(lambda line: line.get("method") == "notifications/tools/list_changed")
    after = server.methods()[server.methods().index("initialize", 1) :]
    assert [each for each in after if each != "GET"] == [
        *("initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe", "tools/call")
    ]
    again = [message for method, message, _ in server.received if method == "initialize"][1]
    assert again == INITIALIZE


async def test_a_call_that_may_have_been_executed_is_not_repeated(tmp_path: Path) -> None:
    """If it failed, a tool that writes would write twice after a broken connection."""
    server = Server()
    server.acts["tools/call"] = breaks
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        answer = await client.asks(call(1))
    assert "may have been executed" in answer["error"]["message"]
    assert server.methods().count("tools/call") == 1


async def test_a_call_that_only_reads_is_repeated(tmp_path: Path) -> None:
    """If it failed, a broken connection would fail calls that can be repeated."""
    server = Server()
    tools = [{"name": "read", "annotations": {"readOnlyHint": True}}, {"name": "write"}]

    def listed(message: dict[str, Any]) -> httpx2.Response:
        return stream({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": tools}})

    def once(_: Any) -> httpx2.Response:
        del server.acts["tools/call"]
        return stream()

    server.acts = {"tools/list": listed, "tools/call": once}
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.asks(call(1, method="tools/list"))
        assert "result" in await client.asks(call(2, "read"))
        server.acts["tools/call"] = once
        assert "error" in await client.asks(call(3, "write"))


async def test_a_stream_that_breaks_is_resumed(tmp_path: Path) -> None:
    """If it failed, a long call would fail with its connection, although the server keeps the answer."""
    server = Server()
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}

    def broken(_: Any) -> httpx2.Response:
        response = stream(progress, event_id="event-1")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        return response

    server.acts["tools/call"] = broken
    server.acts["GET"] = lambda _: stream({"jsonrpc": "2.0", "id": 1, "result": {"done": True}})
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        assert (await client.asks(call(1)))["result"] == {"done": True}
        assert progress in client.lines
    assert [headers["last-event-id"] for method, _, headers in server.received if "last-event-id" in headers] == [
        "event-1"
    ]
    assert server.methods().count("tools/call") == 1


async def test_questions_of_two_sessions_do_not_mix(tmp_path: Path) -> None:
    """If it failed, the answer to a question of the old session would answer another question of the new one."""
    server = Server()
    held = anyio.Event()
    question = {"jsonrpc": "2.0", "id": 0, "method": "elicitation/create", "params": {"message": "what?"}}
    server.acts["tools/call"] = lambda _: stream(question, rest=held.wait)
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(1))
        first = await client.hears(lambda line: line.get("method") == "elicitation/create")
        server.restart()
        await client.asks(call(2, method="tools/list"))
        withdrawn = await client.hears(lambda line: line.get("method") == "notifications/cancelled")
        assert withdrawn["params"]["requestId"] == first["id"]
        await client.says(call(3))
        second = await client.hears(
            lambda line: line.get("method") == "elicitation/create" and line["id"] != first["id"]
        )
        for asked in (first, second):
            await client.says({"jsonrpc": "2.0", "id": asked["id"], "result": {"of": asked["id"]}})
        with anyio.fail_after(60):
            while "answer" not in server.methods():
                await anyio.sleep(0.001)
        held.set()
    answers = [message for method, message, _ in server.received if method == "answer"]
    assert answers == [{"jsonrpc": "2.0", "id": 0, "result": {"of": second["id"]}}]


async def test_an_answer_to_a_session_that_the_client_has_left_is_dropped(tmp_path: Path) -> None:
    """If it failed, a client that begins anew would answer a question that the new session has not asked."""
    server = Server()
    held = anyio.Event()
    server.acts["tools/call"] = lambda _: stream({"jsonrpc": "2.0", "id": 0, "method": "roots/list"}, rest=held.wait)
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(1))
        asked = await client.hears(lambda line: line.get("method") == "roots/list")
        await client.asks(INITIALIZE | {"id": "second"})
        await client.says({"jsonrpc": "2.0", "id": asked["id"], "result": {}})
        await client.asks(call(2, method="tools/list"))
        held.set()
    assert "answer" not in server.methods()


async def test_a_cancellation_reaches_the_server_and_ends_the_request(tmp_path: Path) -> None:
    """If it failed, a call that a person cancels would go on."""
    server = Server()
    started, held = anyio.Event(), anyio.Event()

    async def hangs(_: Any) -> httpx2.Response:
        started.set()
        await held.wait()
        return stream()

    server.acts["tools/call"] = hangs
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(1))
        await started.wait()
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        await client.says(cancelled)
        with anyio.fail_after(60):
            while client.bridge._requests:
                await anyio.sleep(0.001)
        assert all(line.get("id") != 1 for line in client.lines)
    assert cancelled in [message for _, message, _ in server.received]


async def test_a_message_of_the_newest_protocol_needs_no_session(tmp_path: Path) -> None:
    """If it failed, clients of the protocol version 2026-07-28 could not use stdio."""
    server = Server()
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    async with bridged(tmp_path, server) as (client, _):
        assert "result" in await client.asks(call(1, "añadir", _meta=meta))
    ((_, _, headers),) = server.received
    assert (headers["mcp-protocol-version"], headers["mcp-method"]) == ("2026-07-28", "tools/call")
    assert headers["mcp-name"] == "=?base64?YcOxYWRpcg==?="
    assert "mcp-session-id" not in headers


async def test_a_request_that_cannot_be_sent_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, one call with half of a character would end the bridge and all its calls."""

    # A fake: it stands for each error that nobody has thought of.
    def fails(tools: Tools, message: dict[str, Any]) -> dict[str, str]:
        raise UnicodeError

    async with bridged(tmp_path, Server()) as (client, _):
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        with monkeypatch.context() as context:
            context.setattr(Tools, "headers", fails)
            assert "failed to send" in (await client.asks(call(1, _meta=meta)))["error"]["message"]
        assert "result" in await client.asks(call(2, _meta=meta))


async def test_questions_without_an_answer_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a server that asks without end could fill the memory."""
    monkeypatch.setattr("refresher.stdio.bridge._MOST_QUESTIONS", 1)
    server = Server()
    held = anyio.Event()
    questions = [{"jsonrpc": "2.0", "id": number, "method": "roots/list"} for number in range(2)]
    server.acts["tools/call"] = lambda _: stream(*questions, rest=held.wait)
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(1))
        first = await client.hears(lambda line: line.get("method") == "roots/list")
        second = await client.hears(lambda line: line.get("method") == "roots/list" and line["id"] != first["id"])
        for asked in (first, second):
            await client.says({"jsonrpc": "2.0", "id": asked["id"], "result": {}})
        with anyio.fail_after(60):
            while "answer" not in server.methods():
                await anyio.sleep(0.001)
        held.set()
    assert [message["id"] for method, message, _ in server.received if method == "answer"] == [1]


async def test_a_missing_login_is_an_error_until_the_login_comes(tmp_path: Path) -> None:
    """If it failed, a client would need a restart after each login, or nobody would know that a login is needed."""
    server = Server()
    async with bridged(tmp_path, server) as (client, published):
        await client.begins()
        published.put(1, state="reauthorization_required", error=DEAD, access_token=None, server_url="https://mcp.example/mcp")  # fmt: skip
        answer = await client.asks(call(1))
        assert "run: refresher --state-dir '/a b' login linear" in answer["error"]["message"]
        server.token = "access-token-2"
        published.put(2, server_url="https://mcp.example/mcp")
        assert "result" in await client.asks(call(2))


async def test_a_refused_token_is_an_error_without_the_challenge(tmp_path: Path) -> None:
    """If it failed, a client could begin a login of its own."""
    server = Server()
    async with bridged(tmp_path, server) as (client, published):
        await client.begins()
        server.token = "another"
        answer = await client.asks(call(1))
        assert "rejects the newest token of linear" in answer["error"]["message"]
        assert published.demanded() == ["linear.1"]
    assert "authenticate" not in str(client.lines).lower()


async def test_initialize_is_answered_when_the_server_comes(tmp_path: Path) -> None:
    """If it failed, a client that starts before its server would have to be restarted."""
    server = Server()
    attempts = 0

    def away(message: dict[str, Any]) -> httpx2.Response:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            del server.acts["initialize"]
        return httpx2.Response(503)

    server.acts["initialize"] = away
    async with bridged(tmp_path, server) as (client, _):
        assert "result" in await client.asks(INITIALIZE)


async def test_a_server_that_does_not_come_is_an_error_in_time(tmp_path: Path) -> None:
    """If it failed, a client would wait for its own time-out, and a person would not read the cause."""
    server = Server()
    server.acts["initialize"] = lambda _: httpx2.Response(503)
    async with bridged(tmp_path, server, patience=0.01) as (client, _):
        text = (await client.asks(INITIALIZE))["error"]["message"]
        assert text.startswith("no answer from https://mcp.example: the server is not available (503)")


async def test_a_new_session_with_another_version_is_refused(tmp_path: Path) -> None:
    """If it failed, a client would get messages of a protocol version that it does not know."""
    server = Server()
    async with bridged(tmp_path, server, patience=0.01) as (client, _):
        await client.begins()
        server.restart()
        server.version = "2099-01-01"
        assert "restart the client" in (await client.asks(call(1)))["error"]["message"]
    assert "tools/call" not in server.methods()


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[1e999, NaN]", b'"text"', b"[]", b'{"id": 1}', b"[" * 100_000])
async def test_a_line_that_is_no_message_is_answered_and_ends_nothing(tmp_path: Path, line: bytes) -> None:
    """If it failed, one wrong line would end the session."""
    async with bridged(tmp_path, Server()) as (client, _):
        await client.says(line)
        assert (await client.hears(lambda _: True))["error"]["code"] in (messages.PARSE_ERROR, messages.INVALID_REQUEST)
        assert "result" in await client.asks(INITIALIZE)


async def test_a_deep_message_ends_nothing(tmp_path: Path) -> None:
    """If it failed, a message that is nested as deeply as can be parsed would end the process."""
    async with bridged(tmp_path, Server()) as (client, _):
        await client.begins()
        for depth in range(700, 1000, 4):
            line = b'{"jsonrpc":"2.0","id":%d,"method":"tools/list","params":{"a":%s}}' % (
                depth,
                b"[" * depth + b"]" * depth,
            )
            await client.says(line)
        assert "result" in await client.asks(call(1))


async def test_batches_belong_to_one_protocol_version(tmp_path: Path) -> None:
    """If it failed, a client of that version would not get the answers to its batches."""
    server = Server()
    server.version = messages.BATCHES
    async with bridged(tmp_path, server) as (client, _):
        batch = [call(1), {"jsonrpc": "2.0", "method": "notifications/x"}, call(2)]
        await client.says(batch)
        for request_id in (1, 2):
            assert (await client.answer(request_id))["error"]["code"] == messages.INVALID_REQUEST
        client.lines.clear()
        await client.begins()
        await client.says(batch)
        answers = await client.hears(lambda line: isinstance(line, list))
        assert sorted(each["id"] for each in answers) == [1, 2]


async def test_the_address_must_be_one_of_the_origins(tmp_path: Path) -> None:
    """If it failed, a token file could make stdio send its token elsewhere."""
    server = Server()
    async with bridged(tmp_path, server, patience=0) as (client, published):
        published.put(1, server_url="https://other.example/mcp?key=secret")
        answer = await client.asks(INITIALIZE)
    assert "not for https://other.example" in answer["error"]["message"]
    assert "secret" not in str(answer)
    assert server.received == []


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://other.example/?key=secret", "to https://other.example, and the token is not sent there"),
        ("/other?key=secret", "to another of its addresses"),
    ],
)
async def test_a_redirect_that_is_not_followed_is_explained(tmp_path: Path, location: str, words: str) -> None:
    """If it failed, nobody would know that the server has moved, and that its new address needs a login."""
    server = Server()
    server.acts["initialize"] = lambda _: httpx2.Response(302, headers={"location": location})
    async with bridged(tmp_path, server) as (client, _):
        text = (await client.asks(INITIALIZE))["error"]["message"]
    assert text.startswith(f"https://mcp.example redirects the request (302) {words}; if the server has moved")
    assert text.endswith("or runs: refresher --state-dir '/a b' login linear URL")
    assert "secret" not in text
    assert server.methods() == ["initialize"]


async def test_too_many_requests_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a client that never waits could fill the memory."""
    monkeypatch.setattr("refresher.stdio.bridge._MOST_REQUESTS", 2)
    server = Server()
    held = anyio.Event()
    server.acts["tools/call"] = lambda _: stream(rest=held.wait)
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(1), call(2))
        assert "send this one later" in (await client.asks(call(3)))["error"]["message"]
        held.set()
