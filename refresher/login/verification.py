"""Verification of a new access token: one MCP session that lists the tools."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from refresher.common.errors import LoginRefused, ServerAway
from refresher.grants.record import Grant
from refresher.login.http_client import (
    EVENT_STREAM,
    NO_SERVER_STATUSES,
    TIMEOUT,
    fetch,
    http_client,
    is_stream,
    no_mcp_server,
)
from refresher.oauth import connection_errors, urls

__all__ = ["verify"]

_REFUSED_STATUSES: Final = (401, 403)

# Unpacked. The SDK needs up to 150 times the memory of the JSON that it reads.
_MAX_BODY: Final = 2 * 1024 * 1024


async def verify(grant: Grant, ca_file: str | None) -> str:
    """Use the access token of ``grant`` at its MCP server, within 20 s, and return the result as text.

    Raises ``LoginRefused`` if the server refuses the token, or if the address is not that of an MCP server.
    """
    url = grant.server_url or ""
    if url.startswith("http:") and not urls.is_loopback(urlsplit(url).hostname or ""):
        return f"did not try the new token, because {url} is not https"
    token = grant.access_token
    headers = {} if token is None else {"Authorization": f"{grant.token_type} {token.reveal()}"}
    statuses: list[int] = []

    async def on_response(response: httpx2.Response) -> None:
        # A server may answer 405 to a GET, which requests its stream, and to a DELETE.
        if response.request.method == "POST":
            statuses.append(response.status_code)
        # The SDK reads a response to its end.
        response.stream = _LimitedStream(httpx2.Response(200, headers=response.headers, stream=response.stream))
        response.headers.pop("content-encoding", None)  # the limited stream unpacks

    problem = connection_errors.too_slow(url, TIMEOUT)
    try:
        with anyio.move_on_after(TIMEOUT):
            async with (
                http_client(url, ca_file, headers=headers, event_hooks={"response": [on_response]}) as http,
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
    if statuses[:1] and statuses[0] in NO_SERVER_STATUSES:
        is_older = False
        with suppress(ServerAway):
            # An MCP server of before March 2025 answers a GET with a stream of events.
            request = httpx2.Request("GET", url, headers=headers | {"Accept": EVENT_STREAM})
            is_older = is_stream(await fetch(ca_file, request))
        if not is_older:
            raise no_mcp_server(url, statuses[0], "--no-verify")
    return f"could not try the new token at {url}: {problem}"


class _LimitedStream(httpx2.AsyncByteStream):
    """The unpacked body of ``response`` up to a limit. httpx2 unpacks 1 MiB at a time."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._response.aiter_bytes():
            size += len(chunk)
            if size > _MAX_BODY:
                raise httpx2.ReadError("the answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()
