"""HTTP for discovery, registration and verification: without redirects, and with limits on time, size and networks."""

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2

from refresher.common.errors import ConfigError, LoginRefused, ServerAway
from refresher.oauth import connection_errors, networks
from refresher.oauth.http_client import RequestLoop
from refresher.oauth.networks import Limit, Network
from refresher.oauth.proxies import build_proxy, proxy_for
from refresher.oauth.tls import ssl_context

__all__ = [
    "EVENT_STREAM",
    "NAMED_BY",
    "NO_SERVER_STATUSES",
    "TIMEOUT",
    "Connections",
    "Fetch",
    "check_available",
    "fetch",
    "http_client",
    "is_stream",
    "no_mcp_server",
    "unavailable",
]

TIMEOUT: Final = 20.0
"""Seconds for one request, or for one session."""

EVENT_STREAM: Final = "text/event-stream"

NO_SERVER_STATUSES: Final = (404, 405, 410)
"""What is answered to a message of MCP at a wrong path."""

NAMED_BY: Final = "refresher_named_by"
"""The extension of a request to an address that a server named: a URL of that server."""

_MAX_BODY: Final = 1024 * 1024

_T = TypeVar("_T")

Fetch = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


class Connections:
    """The connections of one login. What a server names is on its own network or a farther one, else nothing is sent.

    A person may name any address. A server on this machine may name any, one on a private network those on private
    networks and the Internet, one on the Internet only those there. What counts is the address that is connected to.
    Behind a proxy, the proxy resolves: a name counts as one of the Internet, and only a literal address is checked.
    """

    def __init__(self, ca_file: str | None) -> None:
        self.ca_file = ca_file
        self._nearest: dict[str, Network] = {}
        """For each host, the nearest network that it may be on, and that it may name."""

    def run(self, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """Run ``function`` in an event loop that checks each connection."""
        return anyio.run(function, *args, backend_options={"loop_factory": RequestLoop})

    async def fetch(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response, as ``fetch``. Raises ``LoginRefused`` if the address is not permitted."""
        url = str(request.url)
        if (namer := request.extensions.get(NAMED_BY)) is not None:
            self._name(url, namer)
        with self.to(url) as limit:
            response = await fetch(self.ca_file, request)
        # What was not seen to be nearer is of the Internet.
        self._lower(_host(url), networks.network_of_literal(_host(url)) if limit.reached is None else limit.reached)
        return response

    async def check(self, key: str, url: str, namer: str) -> None:
        """Raise ``LoginRefused`` if the server at ``namer`` must not name ``url`` as its ``key``; nothing is sent."""
        nearest = self._name(url, namer)
        found = networks.network_of_literal(_host(url))
        if found is None and _is_direct(url):
            with suppress(OSError, ValueError), anyio.move_on_after(TIMEOUT):
                entries = await anyio.getaddrinfo(_host(url), None, type=socket.SOCK_STREAM)
                # A connection takes only the permitted ones.
                found = min(networks.network_of(str(entry[4][0])) for entry in entries)
        if found is not None and found > nearest:
            raise _not_permitted(f"the {key} {url}", found, nearest)

    @contextmanager
    def to(self, url: str) -> Iterator[Limit]:
        """Connect only to what ``url`` may be. Raises ``LoginRefused`` if it has no such address."""
        host = _host(url)
        nearest, literal = self._nearest.get(host, Network.LOOPBACK), networks.network_of_literal(host)
        if literal is not None and literal > nearest:
            raise _not_permitted(url, literal, nearest)
        # To a proxy, any connection is permitted.
        limit = Limit(nearest if _is_direct(url) else Network.LOOPBACK)
        problem = None
        with networks.limited(limit):
            try:
                yield limit
            except ServerAway as error:
                problem = error
        if limit.refused is not None and limit.reached is None:
            raise _not_permitted(url, limit.refused, nearest)
        if problem is not None:
            raise problem
        if not _is_direct(url):
            limit.reached = None

    def _name(self, url: str, namer: str) -> Network:
        return self._lower(_host(url), self._nearest.get(_host(namer)))

    def _lower(self, host: str, network: Network | None) -> Network:
        """Return the nearest network of ``host``, not nearer than ``network``; ``None``: not known, so the Internet."""
        known = self._nearest.get(host, Network.LOOPBACK)
        self._nearest[host] = min(known, Network.PUBLIC if network is None else network)
        return self._nearest[host]


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _is_direct(url: str) -> bool:
    return proxy_for(urlsplit(url).scheme, _host(url)) is None


def _not_permitted(what: str, network: Network, nearest: Network) -> LoginRefused:
    return LoginRefused(
        f"refused to use {what}: it is on {network}, and the server that names it is on {nearest}; nothing was "
        "changed. Check the URL; if the address is right, give it with --issuer or the options for endpoints"
    )


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


def no_mcp_server(url: str, status: int, way_out: str) -> LoginRefused:
    """Return the error for a path where no MCP server is; ``way_out``: the option for an API that is none."""
    return LoginRefused(
        f"there is no MCP server at {url} ({status}); nothing was changed. Check the URL: that of an MCP server often "
        f"ends in /mcp. For an API that is not an MCP server, give {way_out}"
    )
