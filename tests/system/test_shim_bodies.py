"""``BearerAuth`` and the bodies of requests and of rejections."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import API
from tests.support.published import Published
from tests.support.raw_server import RawServer


def _ignore(_: object) -> None:
    """Discard a value, so that a lambda returns ``None``."""


@pytest.mark.parametrize(
    "body",
    [{"content": b"bytes"}, {"json": {"a": 1}}, {"data": {"a": "1"}}, {"content": ""}],
    ids=["bytes", "json", "form", "none"],
)
def test_a_body_in_memory_is_sent_again(tmp_path: Path, library: tuple[Any, Any], body: dict[str, Any]) -> None:
    """If it failed, a POST with a rejected token would fail, or arrive empty the second time."""
    module, auth = library
    with API(lambda token, _: token == "access-token-2") as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        api.before_answer = lambda: _ignore(published.put(2))
        with module.Client(auth=auth(published.source()), timeout=60) as client:
            answer = client.post(f"{api.origin}/", **body)
        sent = client.build_request("POST", f"{api.origin}/", **body).content.decode()
    assert (answer.status_code, answer.json()["body"]) == (200, sent)
    assert api.statuses() == [401, 200]


@pytest.mark.parametrize("client", ["Client", "AsyncClient"])
def test_a_form_with_files_is_sent_again(tmp_path: Path, library: tuple[Any, Any], client: str) -> None:
    """If it failed, an upload with a rejected token would fail, or arrive without its file the second time."""
    module, auth = library
    (tmp_path / "file").write_bytes(b"x" * 100_000)

    async def post(url: str, **options: Any) -> Any:
        async with module.AsyncClient(auth=auth(published.source()), timeout=60) as sending:
            return await sending.post(url, **options)

    with API(lambda token, _: token == "access-token-2") as api, (tmp_path / "file").open("rb") as file:
        published = Published(tmp_path, api.origin)
        published.put(1)
        api.before_answer = lambda: _ignore(published.put(2))
        body = {"data": {"a": "1"}, "files": {"b": file, "c": b"in memory"}}
        if client == "AsyncClient":
            answer = asyncio.run(post(f"{api.origin}/", **body))
        else:
            with module.Client(auth=auth(published.source()), timeout=60) as sending:
                answer = sending.post(f"{api.origin}/", **body)
    assert answer.status_code == 200
    assert [text in answer.json()["body"] for text in ("x" * 100_000, "in memory")] == [True, True]
    assert api.statuses() == [401, 200]


def test_a_form_with_a_file_of_unknown_length_is_not_sent_again(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, a pipe would be sent a second time without what it held."""

    class Pipe:
        name, rest = "pipe", [b"once"]

        def read(self, _: int = -1) -> bytes:
            return self.rest.pop() if self.rest else b""

    module, auth = library
    with API(lambda token, _: token == "access-token-2") as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        api.before_answer = lambda: _ignore(published.put(2))
        with module.Client(auth=auth(published.source()), timeout=60) as client:
            answer = client.post(f"{api.origin}/", files={"a": Pipe()})
    assert (answer.status_code, "once" in answer.json()["body"]) == (401, True)
    assert api.statuses() == [401]


def test_a_streamed_body_is_neither_buffered_nor_sent_again(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, an upload of gigabytes would be held in memory, or its second half sent as the whole."""
    module, auth = library
    with API(lambda token, _: token == "access-token-2") as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        api.before_answer = lambda: _ignore(published.put(2))
        arrived: list[bool] = []

        def chunks() -> Iterator[bytes]:
            yield b"first"
            # If the client buffered, it would ask for the second chunk before the first one arrives.
            arrived.append(api.first_chunk.wait(60))
            yield b"second"

        with module.Client(auth=auth(published.source()), timeout=60) as client:
            answer = client.post(f"{api.origin}/", content=chunks())
    assert arrived == [True]
    assert (answer.status_code, answer.json()["body"]) == (401, "firstsecond")
    assert api.statuses() == [401]


def test_a_streamed_401_can_still_be_read(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, a caller that streams its responses could not read why the server rejected it."""
    module, auth = library
    with API(lambda *_: False) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        with (
            module.Client(auth=auth(published.source(), wait=0.0), timeout=60) as client,
            client.stream("GET", f"{api.origin}/") as answer,
        ):
            assert json.loads(b"".join(answer.iter_bytes())) == {"body": ""}


BODIES = {
    "broken off": b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\nshort",
    # Without this header, a client would rightly fail on the closed connection.
    "no gzip": b"HTTP/1.1 401 No\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "huge": b"HTTP/1.1 401 No\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000,
}


@pytest.mark.parametrize("body", sorted(BODIES))
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_401_with_an_unreadable_body_starts_a_recovery(
    tmp_path: Path, library: tuple[Any, Any], body: str, way: str
) -> None:
    """If it failed, a broken 401 would raise in the auth flow, and end a whole MCP session."""
    module, auth = library

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"access-token-1" in request:
            published.put(2)
            connection.sendall(BODIES[body])
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def get(url: str) -> tuple[int, bytes]:
        async with module.AsyncClient(auth=auth(published.source()), timeout=60) as client:
            response = await client.get(url)
            return response.status_code, response.content

    with RawServer(answer, marker=b"\r\n\r\n") as server:
        url = server.token_endpoint
        published = Published(tmp_path, url.removesuffix("/token"))
        published.put(1)
        if way == "async":
            assert asyncio.run(get(url)) == (200, b"ok")
        else:
            with module.Client(auth=auth(published.source()), timeout=60) as client:
                response = client.get(url)
                assert (response.status_code, response.content) == (200, b"ok")


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_401_with_an_endless_body_does_not_block_the_request(
    tmp_path: Path, library: tuple[Any, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a slow 401, or an event stream with status 401, would block a request forever."""
    from shim import _bearer

    monkeypatch.setattr(_bearer, "_SLOWEST_BODY", 0.2)
    module, auth = library

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"access-token-2" in request:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        published.put(2)
        connection.sendall(b"HTTP/1.1 401 No\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            connection.sendall(b":\n\n")
            time.sleep(0.02)  # the fault itself: a slow body

    async def get(url: str) -> int:
        async with module.AsyncClient(auth=auth(published.source()), timeout=60) as client:
            return int((await client.get(url)).status_code)

    with RawServer(answer, marker=b"\r\n\r\n") as server:
        url = server.token_endpoint
        published = Published(tmp_path, url.removesuffix("/token"))
        published.put(1)
        if way == "async":
            assert asyncio.run(get(url)) == 200
        else:
            with module.Client(auth=auth(published.source()), timeout=60) as client:
                assert client.get(url).status_code == 200
