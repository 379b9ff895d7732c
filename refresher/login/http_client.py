"""HTTP for discovery, registration and verification: without redirects, and with limits on time and size."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx2

from refresher.common.errors import ConfigError, ServerAway
from refresher.oauth import connection_errors
from refresher.oauth.proxies import build_proxy
from refresher.oauth.tls import ssl_context

__all__ = ["EVENT_STREAM", "TIMEOUT", "Fetch", "check_available", "fetch", "http_client", "is_stream", "unavailable"]

TIMEOUT: Final = 20.0
"""Seconds for one request, or for one session."""

EVENT_STREAM: Final = "text/event-stream"

_MAX_BODY: Final = 1024 * 1024

Fetch = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


def http_client(url: str, ca_file: str | None, **options: Any) -> httpx2.AsyncClient:
    """Return a client for ``url``; ``options`` are those of httpx2."""
    parts = urlsplit(url)
    return httpx2.AsyncClient(
        verify=parts.scheme == "https" and ssl_context(ca_file),
        proxy=build_proxy(parts.scheme, parts.hostname or "", httpx2.Proxy),
        trust_env=False,
        timeout=TIMEOUT,
        **options,
    )


async def fetch(ca_file: str | None, request: httpx2.Request) -> httpx2.Response:
    """Return the response with at most 1 MiB of its body; without that of a stream of events, which may have no end.

    Raises ``ServerAway`` if none arrives in time.
    """
    url = str(request.url)
    problem = connection_errors.too_slow(url, TIMEOUT)
    try:
        with anyio.move_on_after(TIMEOUT):
            async with http_client(url, ca_file) as http:
                response = await http.send(request, stream=True)
                body = bytearray()
                if not is_stream(response):
                    async for chunk in response.aiter_bytes():
                        body += chunk[: _MAX_BODY - len(body)]
                        if len(body) >= _MAX_BODY:
                            break
                # The raw headers, because values that are not ASCII cannot be encoded again.
                headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
                return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  a transport can fail in any way
        problem = connection_errors.reason((error,), (), url)
    raise ServerAway(f"{problem}; nothing was changed. Log in again later")


def is_stream(response: httpx2.Response) -> bool:
    """Whether the body is a stream of events."""
    return response.headers.get("content-type", "").startswith(EVENT_STREAM)


def check_available(response: httpx2.Response) -> None:
    """Raise ``ServerAway`` if the server is busy or broken."""
    if response.status_code >= 500 or response.status_code == 429:
        raise unavailable(response)


def unavailable(response: httpx2.Response) -> ServerAway:
    """Return the error for a response that is no answer."""
    return ServerAway(
        f"{response.request.url} answered {response.status_code}; nothing was changed. Log in again later"
    )
