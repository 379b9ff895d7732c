"""Whether a new token works: one MCP session that is initialized and lists the tools."""

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
from refresher.oauth.proxies import made_for
from refresher.oauth.tls import trusted

__all__ = ["Proof", "prove"]

_PATIENCE: Final = 20.0
_REFUSALS: Final = (401, 403)
_LARGEST: Final = 16 * 1024 * 1024
_NO_SERVER: Final = (404, 405, 410)
_STREAM: Final = "text/event-stream"

_NOT_ALLOWED: Final = "Log in as somebody who may use it, ask for another --scope"
_ELSEWHERE: Final = "Check the address (an MCP server's often ends in /mcp)"


class Proof(msgspec.Struct, frozen=True):
    """What the server said to the token, in ``words``: it works, or nobody could tell, unless it is ``refused``.

    Then ``advice`` says what a person can do.
    """

    words: str
    refused: bool = False
    advice: str = ""


async def prove(grant: Grant, *, ca_file: str | None) -> Proof:
    """Use the access token of ``grant`` at its MCP server, for 20 s at most; raises nothing."""
    url = grant.server_url or ""
    if url.startswith("http:") and not urls.is_loopback(urlsplit(url).hostname or ""):
        return Proof(f"the new token was not tried: {url} is not https")
    statuses: list[int] = []

    async def note(answer: httpx2.Response) -> None:
        # It may well say 405 to those who ask for its stream, or to end it.
        if answer.request.method == "POST":
            statuses.append(answer.status_code)

    problem = f"it took longer than {_PATIENCE:.0f} s"
    try:
        with anyio.move_on_after(_PATIENCE):
            async with (
                _http(grant, ca_file, note) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                tools = (await client.list_tools()).tools
                return Proof(f"{url} takes the new token: {len(tools)} tool{'' if len(tools) == 1 else 's'}")
    except Exception as error:  # noqa: BLE001  a server can fail in any way
        problem = connection_errors.reason((error,), (grant.access_token,))
        if "validation error" in problem:
            problem = "what it answers is not MCP"
    if (refusal := next((status for status in reversed(statuses) if status in _REFUSALS), None)) is not None:
        return Proof(f"{url} refuses the new token ({refusal})", refused=True, advice=_NOT_ALLOWED)
    if statuses[:1] and statuses[0] in _NO_SERVER and not await _streams(grant, ca_file):
        return Proof(f"there is no MCP server at {url} ({statuses[0]})", refused=True, advice=_ELSEWHERE)
    return Proof(f"could not try the new token at {url}: {problem}")


async def _streams(grant: Grant, ca_file: str | None) -> bool:
    """Whether there is a server that speaks MCP as it was before March 2025: what it says is a stream of its own."""
    with suppress(Exception), anyio.move_on_after(_PATIENCE):
        async with (
            _http(grant, ca_file) as http,
            http.stream("GET", grant.server_url or "", headers={"Accept": _STREAM}) as answer,
        ):
            return answer.headers.get("content-type", "").startswith(_STREAM)
    return False


def _http(
    grant: Grant, ca_file: str | None, *notes: Callable[[httpx2.Response], Awaitable[None]]
) -> httpx2.AsyncClient:
    """Return a client that sends the access token along; ``notes`` hear of each answer."""
    parts, token = urlsplit(grant.server_url or ""), grant.access_token
    return httpx2.AsyncClient(
        headers={} if token is None else {"Authorization": f"{grant.token_type} {token.reveal()}"},
        transport=_Bounded(
            verify=trusted(ca_file) if parts.scheme == "https" else False,
            proxy=made_for(parts.scheme, parts.hostname or "", httpx2.Proxy),
        ),
        trust_env=False,
        timeout=_PATIENCE,
        event_hooks={"response": [*notes]},
    )


class _Bounded(httpx2.AsyncHTTPTransport):
    """Takes no answer that is larger than a list of tools can be: the SDK would read it all."""

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
