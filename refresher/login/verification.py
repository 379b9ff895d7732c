"""Verification of a new access token: one MCP session that lists the tools."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, cast
from urllib.parse import urlsplit

import anyio
import httpx2
import msgspec
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from refresher.grants.record import Grant
from refresher.oauth import connection_errors, urls
from refresher.oauth.proxies import build_proxy
from refresher.oauth.tls import ssl_context

__all__ = ["Verification", "verify"]

_PATIENCE: Final = 20.0
_REFUSED_STATUSES: Final = (401, 403)
_LARGEST: Final = 16 * 1024 * 1024
_NO_SERVER_STATUSES: Final = (404, 405, 410)
_STREAM: Final = "text/event-stream"

_NOT_ALLOWED: Final = "Log in with an account that may use it, request another --scope"
_WRONG_ADDRESS: Final = "Check the address (that of an MCP server often ends in /mcp)"


class Verification(msgspec.Struct, frozen=True):
    """What the server answered to the token: accepted, not known, or ``refused``, with ``advice`` for the person."""

    text: str
    refused: bool = False
    advice: str = ""


async def verify(grant: Grant, *, ca_file: str | None) -> Verification:
    """Use the access token of ``grant`` at its MCP server, within 20 s. Raises nothing."""
    url = grant.server_url or ""
    if url.startswith("http:") and not urls.is_loopback(urlsplit(url).hostname or ""):
        return Verification(f"the new token was not tried, because {url} is not https")
    statuses: list[int] = []

    async def note(answer: httpx2.Response) -> None:
        # A server may answer 405 to a GET, which asks for its stream, and to a DELETE.
        if answer.request.method == "POST":
            statuses.append(answer.status_code)

    problem = connection_errors.too_slow(url, _PATIENCE)
    try:
        with anyio.move_on_after(_PATIENCE):
            async with (
                _http(grant, ca_file, note) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                tools = (await client.list_tools()).tools
                return Verification(
                    f"{url} accepted the new token ({len(tools)} tool{'' if len(tools) == 1 else 's'} available)"
                )
    except Exception as error:  # noqa: BLE001  a server can fail in any way
        problem = connection_errors.reason((error,), (grant.access_token,), url)
        if "validation error" in problem:
            problem = "its answer is not MCP"
    if (refusal := next((status for status in reversed(statuses) if status in _REFUSED_STATUSES), None)) is not None:
        return Verification(f"{url} refused the new token ({refusal})", refused=True, advice=_NOT_ALLOWED)
    if statuses[:1] and statuses[0] in _NO_SERVER_STATUSES and not await _streams(grant, ca_file):
        return Verification(f"there is no MCP server at {url} ({statuses[0]})", refused=True, advice=_WRONG_ADDRESS)
    return Verification(f"could not try the new token at {url}: {problem}")


async def _streams(grant: Grant, ca_file: str | None) -> bool:
    """Whether the address is an MCP server of before March 2025, which sends its answers in a stream."""
    with suppress(Exception), anyio.move_on_after(_PATIENCE):
        async with (
            _http(grant, ca_file) as http,
            http.stream("GET", grant.server_url or "", headers={"Accept": _STREAM}) as answer,
        ):
            return answer.headers.get("content-type", "").startswith(_STREAM)
    return False


def _http(
    grant: Grant, ca_file: str | None, *hooks: Callable[[httpx2.Response], Awaitable[None]]
) -> httpx2.AsyncClient:
    """Return a client that sends the access token; ``hooks`` are called with each response."""
    parts, token = urlsplit(grant.server_url or ""), grant.access_token
    return httpx2.AsyncClient(
        headers={} if token is None else {"Authorization": f"{grant.token_type} {token.reveal()}"},
        transport=_Bounded(
            verify=ssl_context(ca_file) if parts.scheme == "https" else False,
            proxy=build_proxy(parts.scheme, parts.hostname or "", httpx2.Proxy),
        ),
        trust_env=False,
        timeout=_PATIENCE,
        event_hooks={"response": [*hooks]},
    )


class _Bounded(httpx2.AsyncHTTPTransport):
    """A transport that limits the size of a response: the SDK reads all of it."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        answer.stream = _Limited(cast("httpx2.AsyncByteStream", answer.stream))
        return answer


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._stream:
            seen += len(chunk)
            if seen > _LARGEST:
                raise httpx2.ReadError("the answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
