"""``refresher stdio``: each request has one answer, with its id, whatever is wrong with it."""

from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from refresher.stdio.messages import BATCHES, CUT, INVALID_REQUEST, PARSE_ERROR, find_id
from tests.unit.stdio.scripted import Server, bridged, call


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"jsonrpc":"2.0", "id" : "a\\"b", "method":"x", "params":{"id":', 'a"b'),
        (b' { "method" : "x" ,"params":{"a":[%b]}, "jsonrpc":"2.0","id":-7}\r' % CUT, -7),
        (b'{"method":"x","params":%b},"id":1.5,"jsonrpc":"2.0"}' % CUT, 1.5),
        (b'{"method":"x","params":{"a":NaN},"id":2}', 2),
        (b'{"id":3,"method":"x"}{"id":4,"method":"x"}', 3),
        (b'{"jsonrpc":"2.0","id":5,"result":%b}' % CUT, None),
        (b'{"result":{"a":%b},"jsonrpc":"2.0","id":5}' % CUT, None),
        (b'{"method":"x","params":{"id":5,"a":NaN}}', None),
        (b'{"method":"x","params":{"a":",\\"id\\":5}%b","b":[{}]}}' % CUT, None),
        (b'{"method":"x","id":NaN}', None),
        (b'{"method":"x","id":1e999', None),
        (b'{"method":"x","id":[5],', None),
        (b'{"method":"x","id":true,', None),
        (b'"method":"x","id":5', None),
        (b"", None),
    ],
)
def test_the_id_of_a_line_that_cannot_be_parsed_is_found_or_nothing_is(line: bytes, found: object) -> None:
    """If it failed, a call would have no answer, or an error would end another call."""
    assert find_id(line) == found


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b'{"method": 5, "id": 7}', INVALID_REQUEST, 7),
        (b'{"method": 5, "id": [7]}', INVALID_REQUEST, None),
        (b'{"id": 7}', INVALID_REQUEST, None),
        (b'[1, {"method": "x", "id": 7}]', INVALID_REQUEST, 7),
        (b'{"method": "x", "id": 7, "a": NaN}', PARSE_ERROR, 7),
        (b'{"method":"x","params":%b},"id":7}' % CUT, PARSE_ERROR, 7),
    ],
)
async def test_what_is_no_request_is_answered_with_its_id(
    tmp_path: Path, line: bytes, code: int, request_id: object
) -> None:
    """If it failed, a client would wait for the answer until its own time-out."""
    async with bridged(tmp_path, Server()) as (client, _):
        await client.says(line)
        await client.hears(lambda _: True)
        assert [(each["id"], each["error"]["code"]) for each in client.lines] == [(request_id, code)]


@pytest.mark.asyncio
async def test_a_second_request_with_a_pending_id_is_refused(tmp_path: Path) -> None:
    """If it failed, one of two calls with the same id would have no answer, or the answer of the other."""
    server, started, held = Server(), anyio.Event(), anyio.Event()

    async def answers(message: dict[str, Any]) -> httpx2.Response:
        started.set()
        await held.wait()
        return httpx2.Response(200, json={"jsonrpc": "2.0", "id": message["id"], "result": {}})

    server.acts["tools/call"] = answers
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says(call(7))
        await started.wait()
        refused = (await client.asks(call(7)))["error"]
        assert refused["code"] == INVALID_REQUEST
        assert "the id 7 has no answer yet, so this one was not sent" in refused["message"]
        held.set()
        await client.hears(lambda line: line.get("id") == 7 and "result" in line)
        assert server.methods().count("tools/call") == 1
        assert "result" in await client.asks(call("7"))


@pytest.mark.asyncio
async def test_a_batch_with_requests_that_are_none_is_answered_as_a_whole(tmp_path: Path) -> None:
    """If it failed, one wrong request would cost a batch all its answers."""
    server = Server()
    server.version = BATCHES
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.says([call(1), {"method": 5, "id": 2}, call(1)])
        answers = await client.hears(lambda line: isinstance(line, list))
    assert sorted((each["id"], "result" in each) for each in answers) == [(1, False), (1, True), (2, False)]
