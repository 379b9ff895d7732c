"""Verification of a new access token: one MCP session that lists the tools."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, cast
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from refresher.common.errors import LoginRefused
from refresher.grants.record import Grant
from refresher.login.http_client import EVENT_STREAM, TIMEOUT, http_client, is_stream
from refresher.oauth import connection_errors, urls

__all__ = ["verify"]

_REFUSED_STATUSES: Final = (401, 403)
_NO_SERVER_STATUSES: Final = (404, 405, 410)
_MAX_BODY: Final = 16 * 1024 * 1024


async def verify(grant: Grant, ca_file: str | None) -> str:
    """Use the access token of ``grant`` at its MCP server, within 20 s, and return the result as text.

    Raises ``LoginRefused`` if the server refuses the token, or if the address is not that of an MCP server.
    """
    url = grant.server_url or ""
    if url.startswith("http:") and not urls.is_loopback(urlsplit(url).hostname or ""):
        return f"did not try the new token, because {url} is not https"
    statuses: list[int] = []

    async def note_status(response: httpx2.Response) -> None:
        # A server may answer 405 to a GET, which requests its stream, and to a DELETE.
        if response.request.method == "POST":
            statuses.append(response.status_code)

    problem = connection_errors.too_slow(url, TIMEOUT)
    try:
        with anyio.move_on_after(TIMEOUT):
            async with (
                _http(grant, ca_file, note_status) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                tools = (await client.list_tools()).tools
                count = f"{len(tools)} tool{'' if len(tools) == 1 else 's'}"
                return f"{url} accepted the new token ({count} available)"
    except Exception as error:  # noqa: BLE001  a server can fail in any way
        problem = connection_errors.reason((error,), (grant.access_token,), url)
        if "validation error" in problem:
            problem = "its answer is not MCP"
    if refusals := [status for status in statuses if status in _REFUSED_STATUSES]:
        raise LoginRefused(
            f"{url} refused the new token ({refusals[-1]}); nothing was changed. Log in with an account that may use "
            "it, or request another --scope, or give --no-verify"
        )
    if statuses[:1] and statuses[0] in _NO_SERVER_STATUSES and not await _is_sse_server(grant, ca_file):
        raise LoginRefused(
            f"there is no MCP server at {url} ({statuses[0]}); nothing was changed. Check the URL: that of an MCP "
            "server often ends in /mcp. For an API that is not an MCP server, give --no-verify"
        )
    return f"could not try the new token at {url}: {problem}"


async def _is_sse_server(grant: Grant, ca_file: str | None) -> bool:
    """Whether the address is an MCP server of before March 2025, which answers in a stream of events."""
    with suppress(Exception), anyio.move_on_after(TIMEOUT):
        async with (
            _http(grant, ca_file) as http,
            http.stream("GET", grant.server_url or "", headers={"Accept": EVENT_STREAM}) as response,
        ):
            return is_stream(response)
    return False


def _http(
    grant: Grant, ca_file: str | None, *hooks: Callable[[httpx2.Response], Awaitable[None]]
) -> httpx2.AsyncClient:
    """Return a client that sends the access token; ``hooks`` are called with each response."""
    token = grant.access_token
    return http_client(
        grant.server_url or "",
        ca_file,
        headers={} if token is None else {"Authorization": f"{grant.token_type} {token.reveal()}"},
        event_hooks={"response": [_limit_size, *hooks]},
    )


async def _limit_size(response: httpx2.Response) -> None:
    # The SDK reads a response to its end.
    response.stream = _LimitedStream(cast("httpx2.AsyncByteStream", response.stream))


class _LimitedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_BODY:
                raise httpx2.ReadError("the answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
