"""``BearerAuth`` in real HTTP clients against a real API, while tokens change."""

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shim import FileTokenSource, TokenFileError
from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.oidc import OIDC
from tests.support.published import Published

# --- another process rewrites the file ----------------------------------------------------------------------------

# A separate process, as refresher is: it replaces the token, prints its generation, and waits for a line before the next one.
WRITER = """
import os, sys
from functools import partial
from pathlib import Path
from shim._token import parse, render
path, swap, times = Path(sys.argv[1]), sys.argv[2] == "swap", int(sys.argv[3])
token = parse(path.read_bytes())
for generation in range(2, times + 2):
    data = render(token._replace(generation=generation, access_token=f"access-token-{generation}"))
    if swap:
        new = path.parent / f"..data-{generation}"
        new.mkdir()
        (new / path.name).write_bytes(data)
        (path.parent / "..data_tmp").symlink_to(new.name)
        (path.parent / "..data_tmp").rename(path.parent / "..data")
    else:
        (path.parent / ".new").write_bytes(data)
        (path.parent / ".new").rename(path)
    print(generation, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["rename", "swap"])
def test_each_of_two_hundred_rewrites_reaches_the_next_request(
    tmp_path: Path, library: tuple[Any, Any], way: str
) -> None:
    """If it failed, an agent would need a restart after a rotation."""
    module, auth = library

    def accepts(token: str | None, headers: dict[str, str]) -> bool:
        # A request must not carry an older token than the one that was published before it began.
        return token is not None and int(token.rpartition("-")[2]) >= int(headers["x-published"])

    with API(accepts) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        if way == "swap":
            (published.tokens / "..data-1").mkdir()
            published.path.rename(published.tokens / "..data-1/linear.json")
            (published.tokens / "..data").symlink_to("..data-1")
            published.path.symlink_to("..data/linear.json")
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(published.path), way, "200"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        latest = [1]
        stop = threading.Event()
        bearer = auth(published.source())

        def has_seen(requests: int) -> bool:
            return len(api.seen) >= requests

        def load() -> None:
            with module.Client(auth=bearer, timeout=60) as client:
                while not stop.is_set():
                    client.get(f"{api.origin}/load", headers={"x-published": str(latest[0])})

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            with module.Client(auth=bearer, timeout=60) as client:
                for line in writer.stdout:
                    latest[0] = int(line)
                    before = len(api.seen)
                    answer = client.get(f"{api.origin}/next", headers={"x-published": line.strip()})
                    assert answer.status_code == 200
                    wait_until(partial(has_seen, before + 2), "there are requests beside it")
                    writer.stdin.write("\n")
                    writer.stdin.flush()
        finally:
            stop.set()
            for thread in threads:
                thread.join(90)
        writer.communicate()
        assert writer.returncode == 0
    nexts = [seen.token for seen in api.seen if seen.path == "/next"]
    assert nexts == [f"access-token-{generation}" for generation in range(2, 202)]
    assert set(api.statuses()) == {200}
    assert published.demanded() == []


# --- one recovery for many ----------------------------------------------------------------------------------------


def _in_threads(count: int, work: Callable[[], int]) -> list[int]:
    results: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: results.put(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return [results.get(timeout=1) for _ in threads]


def _sync(module: Any, auth: Any, url: str, count: int) -> list[int]:
    # Each thread has a client: the pool of httpcore 1.0.9 can close a connection that another thread is using.
    def get() -> int:
        with module.Client(auth=auth, timeout=60, verify=False) as client:
            return int(client.get(url).status_code)

    return _in_threads(count, get)


def _async(module: Any, auth: Any, url: str, count: int) -> list[int]:
    async def run() -> list[int]:
        limits = module.Limits(max_connections=10)
        async with module.AsyncClient(auth=auth, limits=limits, timeout=60) as client:

            async def get() -> int:
                return int((await client.get(url)).status_code)

            tasks: list[Awaitable[int]] = [get() for _ in range(count)]
            return list(await asyncio.gather(*tasks))

    return asyncio.run(run())


def _two_loops(module: Any, auth: Any, url: str, count: int) -> list[int]:
    results: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: results.put(_async(module, auth, url, count // 2))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return results.get(timeout=1) + results.get(timeout=1)


@pytest.mark.parametrize("way", [_sync, _async, _two_loops], ids=["threads", "async", "two loops"])
def test_two_hundred_rejected_requests_cause_one_demand_and_one_rotation(
    refresher: Command, own_oidc: Callable[..., OIDC], library: tuple[Any, Any], way: Callable[..., list[int]]
) -> None:
    """If it failed, one revoked token would cause many rotations, or two hundred failures."""
    module, auth = library
    server = own_oidc()
    revoked: set[str | None] = set()
    with API(lambda token, _: token is not None and token not in revoked) as api:
        refresher.import_grant("linear", server.mint("public") | {"server_url": api.origin})
        assert refresher("run-once").code == 0
        revoked.add(refresher.token("linear").access_token)
        source = FileTokenSource(
            "linear", tokens_dir=refresher.state / "tokens", demands_dir=refresher.state / "demands"
        )
        demands: list[list[str]] = []

        def answer_demands() -> None:
            def answered() -> bool:
                demands.append(sorted(path.name for path in (refresher.state / "demands").iterdir()))
                if demands[-1]:
                    refresher("run-once")
                return refresher.token("linear").generation == 2

            wait_until(answered, "refresher has answered the demand")

        owner = threading.Thread(target=answer_demands)
        owner.start()
        statuses = way(module, auth(source, wait=60), f"{api.origin}/", 200)
        owner.join(90)
    assert statuses == [200] * 200
    assert {name for names in demands for name in names} == {"linear.1"}
    assert len(server.requests()) == 2, "one revoked token caused more than one rotation"
    refresher("run-once")  # a request that was late may have demanded the old token again
    assert refresher.token("linear").generation == 2
    assert list((refresher.state / "demands").iterdir()) == []


def test_a_request_that_waits_for_a_newer_token_holds_no_connection(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, the requests of one rejected token would fill the connection pool, and stop all other requests."""
    module, auth = library
    with API(lambda token, _: token != "access-token-1") as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        one = {"limits": module.Limits(max_connections=1), "timeout": 60}

        def both() -> list[int]:
            with module.Client(auth=auth(published.source(), wait=90), **one) as client:
                waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
                thread = threading.Thread(target=lambda: waiting.put(client.get(api.origin).status_code))
                thread.start()
                wait_until(lambda: api.statuses() == [401], "the token is rejected")
                free = client.get(api.origin, auth=None).status_code
                published.put(2)
                thread.join(90)
                return [free, waiting.get(timeout=1)]

        async def both_async() -> list[int]:
            async with module.AsyncClient(auth=auth(published.source(), wait=90), **one) as client:
                waiting = asyncio.create_task(client.get(api.origin))
                while api.statuses() != [401]:
                    await asyncio.sleep(0.01)
                free = (await client.get(api.origin, auth=None)).status_code
                published.put(2)
                return [free, (await waiting).status_code]

        assert both() == [200, 200]
        published.put(1)
        api.seen.clear()
        assert asyncio.run(both_async()) == [200, 200]


def test_the_caller_gets_the_401_of_a_server_that_rejects_everything(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, callers would get an exception or a long wait instead of the server's own 401."""
    module, auth = library
    with API(lambda *_: False) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        bearer = auth(published.source(), wait=0.2)
        with module.Client(auth=bearer, timeout=60) as client:
            for _ in range(5):
                answer = client.get(f"{api.origin}/")
                assert (answer.status_code, answer.json()) == (401, {"body": ""})
        assert len(api.seen) == 5, "a rejected token was sent again"
        assert published.demanded() == ["linear.1"]
        assert bearer.source.problem() is not None


# --- origins ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[API]:
    """An API at another origin, which rejects every token."""
    with API(lambda *_: False) as api:
        yield api


def test_no_token_reaches_another_origin(tmp_path: Path, library: tuple[Any, Any], other: API) -> None:
    """If it failed, anybody who can give an agent a URL would get its token (I8)."""
    module, auth = library
    with API(lambda token, _: token is not None) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        with module.Client(auth=auth(published.source(), wait=0.2), timeout=60, follow_redirects=True) as client:
            assert client.get(f"{api.origin}/").status_code == 200
            assert client.get(f"{other.origin}/port").status_code == 401
            assert client.get(f"{api.origin.replace('127.0.0.1', 'localhost')}/host").status_code == 401
            assert client.get(f"{api.origin}/redirect?{other.origin}/redirected").status_code == 401
            assert client.get(f"{api.origin}/redirect?{api.origin}/at-home").status_code == 200
            own = client.get(f"{other.origin}/own", headers={"Authorization": "Basic b3duOm93bg=="})
            assert own.request.headers["authorization"] == "Basic b3duOm93bg==", "the caller's own header was changed"
    assert {seen.token for seen in [*other.seen, *(seen for seen in api.seen if seen.path == "/host")]} == {None}
    assert published.demanded() == [], "another origin's 401 started a recovery"


def test_a_request_sent_twice_does_not_keep_a_token_that_is_gone(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, a removed token, or one that now has other origins, would still be sent (I8)."""
    module, auth = library
    with API(lambda token, _: token is not None) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        with module.Client(auth=auth(published.source()), timeout=60) as client:
            request = client.build_request("GET", f"{api.origin}/")
            assert client.send(request).status_code == 200
            published.put(1, state="removed", access_token=None)
            assert client.send(request).status_code == 401
    assert [seen.token for seen in api.seen] == ["access-token-1", None]


# --- arguments and errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [-1, float("nan")])
def test_an_invalid_wait_or_source_is_an_error_at_once(library: tuple[Any, Any], wait: float) -> None:
    """If it failed, the first 401 would raise in the middle of a session."""
    with pytest.raises(ValueError, match="wait"):
        library[1]("linear", wait=wait)
    for nothing in (None, 5):
        with pytest.raises(TypeError, match="name"):
            library[1](nothing)


def test_errors_are_raised_only_with_raise_errors(tmp_path: Path, library: tuple[Any, Any]) -> None:
    """If it failed, an agent without a token file would crash instead of getting the server's own answer."""
    module, auth = library
    with API(lambda token, _: token is not None) as api:
        published = Published(tmp_path, api.origin)
        with module.Client(auth=auth(published.source()), timeout=60) as client:
            assert client.get(f"{api.origin}/").status_code == 401
            published.put(1)
            assert client.get(f"{api.origin}/").status_code == 200
        published.path.unlink()
        with (
            module.Client(auth=auth(published.source(), raise_errors=True), timeout=60) as client,
            pytest.raises(TokenFileError),
        ):
            client.get(f"{api.origin}/")


def test_a_name_is_enough_as_the_source(
    tmp_path: Path, library: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, every agent would have to configure the directory of the tokens."""
    module, auth = library
    with API(lambda token, _: token == "access-token-1") as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        monkeypatch.setenv("REFRESHER_STATE_DIR", str(tmp_path))
        with module.Client(auth=auth("linear"), timeout=60) as client:
            assert client.get(f"{api.origin}/").status_code == 200
