"""An agent that makes calls in rounds, with its token from one of four places.

    python -m tests.bench.calls_program '{"layer": "http", "way": "shim", "url": ..., "tokens": ..., "demands": ...}'

For each line of JSON, it makes ``calls`` calls at once that take ``seconds``; ``beside``: after a call that takes so many
seconds has begun. It prints the seconds until all have ended; the one beside them does not count.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from shim import FileTokenSource
from shim.httpx2 import BearerAuth

_REDIRECT = AnyUrl("http://127.0.0.1/callback")
_TOKEN = "access-token-1"
_LIMITS = httpx2.Limits(max_connections=100)
_BEGUN = 0.1
"""Seconds after which a call has begun."""

_Call = Callable[[float], Coroutine[Any, Any, None]]


class _Storage(TokenStorage):
    """A stored login with a valid token."""

    async def get_tokens(self) -> OAuthToken | None:
        return OAuthToken(access_token=_TOKEN, token_type="Bearer", expires_in=3600)

    async def set_tokens(self, tokens: OAuthToken) -> None:
        raise NotImplementedError

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return OAuthClientInformationFull(client_id="client", redirect_uris=[_REDIRECT])

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        raise NotImplementedError


async def _auth(plan: dict[str, str]) -> httpx2.Auth | None:
    """Return what adds the token to the requests; ``None``: a fixed header does."""
    if plan["way"] == "shim":
        return BearerAuth(_source(plan))
    if plan["way"] == "sdk":
        return OAuthClientProvider(plan["url"], OAuthClientMetadata(redirect_uris=[_REDIRECT]), _Storage())
    if plan["way"] == "fastmcp":
        from fastmcp.client.auth import OAuth

        warnings.simplefilter("ignore")  # it warns that its store is in memory
        provider = OAuth(plan["url"], client_id="client")
        await provider.token_storage_adapter.set_tokens(
            OAuthToken(access_token=_TOKEN, token_type="Bearer", expires_in=3600)
        )
        made: httpx2.Auth = provider
        return made
    return None


def _source(plan: dict[str, str]) -> FileTokenSource:
    return FileTokenSource("linear", tokens_dir=plan["tokens"], demands_dir=plan["demands"])


@asynccontextmanager
async def _http(plan: dict[str, str]) -> Any:
    auth = await _auth(plan)
    headers = {} if auth else {"Authorization": f"Bearer {_TOKEN}"}
    async with httpx2.AsyncClient(auth=auth, headers=headers, limits=_LIMITS, timeout=90, trust_env=False) as client:

        async def call(seconds: float) -> None:
            (await client.get(f"{plan['url']}/?seconds={seconds}")).raise_for_status()

        yield call


@asynccontextmanager
async def _mcp(plan: dict[str, str]) -> Any:
    async with await _client(plan) as client:

        async def call(seconds: float) -> None:
            tool, arguments = ("slow", {"seconds": seconds}) if seconds else ("add", {"a": 1, "b": 2})
            answer = await client.call_tool(tool, arguments)
            if answer.is_error:
                raise ValueError(str(answer))

        yield call


async def _client(plan: dict[str, str]) -> AbstractAsyncContextManager[Any]:
    if plan["way"] == "shim":
        from shim.mcp import ReconnectingClient

        return ReconnectingClient(plan["url"], _source(plan))
    auth = await _auth(plan)
    http = create_mcp_http_client(headers={} if auth else {"Authorization": f"Bearer {_TOKEN}"}, auth=auth)
    return Client(streamable_http_client(plan["url"], http_client=http))


async def main(plan: dict[str, str]) -> None:
    """Make rounds until stdin ends."""
    async with _http(plan) if plan["layer"] == "http" else _mcp(plan) as call:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            print(await _round(call, **json.loads(line)), flush=True)


async def _round(call: _Call, *, calls: int, seconds: float, beside: float) -> float:
    async with anyio.create_task_group() as slow:
        if beside:
            slow.start_soon(call, beside)
            await anyio.sleep(_BEGUN)
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(call, seconds)
        ended = time.perf_counter()
    return ended - began


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
