"""The cost of the shim, as ratios to a baseline that the same run measures."""

import asyncio
import resource
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from os import stat
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import pytest
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

import shim.httpx2
from tests.bench.conftest import Compare
from tests.support.published import Published

ROOT = Path(__file__).parent.parent.parent
CALLS = 50
DELAY = 0.05


def _cpu(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_shim_costs_at_most_three_bare_interpreters(compare: Compare) -> None:
    """If it failed, the import of shim would slow down the start of agents."""
    _cpu("import shim")  # byte code is written once
    # In turn, so that both run under the same load; the minimum is the cost when nothing else runs.
    pairs = [(_cpu("import shim"), _cpu("pass")) for _ in range(25)]
    ratio = min(ours for ours, _ in pairs) / min(bare for _, bare in pairs)
    compare("import shim, against a bare interpreter", ratio, at_most=3)


def test_a_read_of_the_token_costs_at_most_half_more_than_a_stat(tmp_path: Path, compare: Compare) -> None:
    """If it failed, the token of each request would slow down a busy program."""
    published = Published(tmp_path)
    published.put(1)
    source, path = published.source(), str(published.path)
    assert source.current() is not None
    ratios = []
    for _ in range(15):
        ours = min(timeit.repeat(source.current, number=5_000, repeat=3))
        bare = min(timeit.repeat(lambda: stat(path), number=5_000, repeat=3))  # noqa: PTH116  the baseline itself
        ratios.append(ours / bare)
    compare("current(), against os.stat", median(ratios), at_most=1.5)


class _Storage(TokenStorage):
    """A stored login with a valid token, for the provider of the SDK."""

    async def get_tokens(self) -> OAuthToken | None:
        return OAuthToken(access_token="access-token-1", token_type="Bearer", expires_in=3600)

    async def set_tokens(self, tokens: OAuthToken) -> None:
        raise NotImplementedError

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return OAuthClientInformationFull(client_id="client", redirect_uris=[AnyUrl("http://127.0.0.1/callback")])

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        raise NotImplementedError


def _provider(origin: str) -> OAuthClientProvider:
    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl("http://127.0.0.1/callback")])
    return OAuthClientProvider(origin, metadata, _Storage())


# In a process of its own: in this process its fifty threads would delay the measured client.
SERVER = f"""
import sys, time
from tests.support.api import API
with API(lambda token, _: token == "access-token-1") as api:
    api.before_answer = lambda: time.sleep({DELAY})
    print(api.origin, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def origin() -> Iterator[str]:
    """The origin of an API with slow answers; it ends when its standard input closes."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()


def test_many_calls_at_once_are_as_fast_as_with_a_fixed_header(tmp_path: Path, origin: str, compare: Compare) -> None:
    """If it failed, the requests of one agent would run one after the other."""
    published = Published(tmp_path, origin)
    published.put(1)

    async def calls(auth: Callable[[], Any], headers: dict[str, str], rounds: int = 5) -> float:
        limits = httpx2.Limits(max_connections=CALLS)
        took = []
        async with httpx2.AsyncClient(auth=auth(), headers=headers, limits=limits, timeout=90) as client:
            # The first round connects, and is not measured.
            for _ in range(1 + rounds):
                began = time.perf_counter()
                answers = await asyncio.gather(*(client.get(f"{origin}/") for _ in range(CALLS)))
                took.append(time.perf_counter() - began)
                assert {answer.status_code for answer in answers} == {200}
        return min(took[1:])

    fixed = {"Authorization": "Bearer access-token-1"}
    pairs = [
        (
            asyncio.run(calls(lambda: shim.httpx2.BearerAuth(published.source()), {})),
            asyncio.run(calls(lambda: None, fixed)),
        )
        for _ in range(9)
    ]
    ratio = min(ours for ours, _ in pairs) / min(header for _, header in pairs)
    sdk = asyncio.run(calls(lambda: _provider(origin), {}, rounds=1)) / median(header for _, header in pairs)
    compare(f"{CALLS} calls at once, against a fixed header", ratio, at_most=1.1)
    # A lower ratio means that the SDK no longer serializes requests, and the README must say so.
    compare(f"{CALLS} calls at once with the SDK's OAuthClientProvider, against a fixed header", sdk, at_least=5)
