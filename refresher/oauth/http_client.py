"""Send one POST request to an authorization server, under one deadline.

The deadline covers name resolution, connection, TLS, sending and reading together. The timeouts of HTTP libraries cover
one operation each: a server that sends one byte per second never exceeds them. The event loop exists for this deadline.
"""

import asyncio
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing, suppress
from contextvars import Context, copy_context
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import anyio
import httpcore

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import ConfigError
from refresher.common.secret import Secret
from refresher.grants.outcome import Outcome
from refresher.grants.record import Grant
from refresher.oauth import connection_errors, networks, urls
from refresher.oauth.client_authentication import build_request, client_assertion
from refresher.oauth.proxies import build_proxy
from refresher.oauth.tls import ssl_context
from refresher.oauth.token_response import parse_token_response

__all__ = ["DEADLINE", "PostResult", "RequestLoop", "post"]

DEADLINE: Final = 20.0
"""Seconds for one operation. It is shorter than the wait for a lock and than the grace period of a pod."""

_CONNECT_TIMEOUT: Final = 10.0
_MAX_BODY: Final = 1024 * 1024
_TICK: Final = 0.5
_STOP_THRESHOLD: Final = 2.0

_SAFE: Final = "!#$%&'()*+,/:;=?@[\\]^{|}~"
"""What stays as it is in the URL of a request, besides letters, digits and ``_.-``."""

_MOST_IDLE: Final = 16
_idle: Final[deque[asyncio.Runner]] = deque()
"""Event loops between two requests."""


class PostResult:
    """What is known of a request. It is valid at any time, also after a deadline interrupted the request."""

    def __init__(self, secrets: tuple[Secret | None, ...]) -> None:
        self.sent_at: Moment | None = None
        """When the first byte was sent; ``None`` if nothing was sent."""
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        """The body as received, before decompression."""
        self.complete = False
        """Whether the body was received to its end."""
        self.error = ""
        """Why there is no answer, as text without secrets."""
        self.certificate_refused = False
        """Whether the server ended the TLS handshake because it requires a client certificate that it accepts."""
        self._secrets = secrets

    async def receive(self, response: httpcore.Response) -> None:
        """Read the response, up to the size limit of a body."""
        headers: dict[str, str] = {}
        for name, value in response.headers:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.headers = headers
        self.status = response.status
        # Raw bytes: if the server labels the encoding wrongly, a decoder would lose the only copy of a token.
        async for chunk in response.aiter_stream():
            self.body += chunk[: _MAX_BODY - len(self.body)]
            if len(self.body) >= _MAX_BODY:
                return
        # Without a length, the end of the body looks like a broken connection. Only JSON shows its own end.
        self.complete = not self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))

    def outcome(self) -> Outcome:
        """Return what the answer means. Call it only if there is one (``status`` is set)."""
        return parse_token_response(
            self.status or 0,
            self.headers,
            self.decompressed_body(),
            complete=self.complete,
            now=clocks.now().wall,
            secrets=self._secrets,
        )

    def decompressed_body(self) -> bytes:
        """Return the body, decompressed up to a limit if the server sent gzip without a request for it."""
        body = bytes(self.body)
        if not body.startswith(b"\x1f\x8b"):
            return body
        try:
            return zlib.decompressobj(wbits=31).decompress(body, _MAX_BODY) or body
        except zlib.error:
            return body


def post(
    client: Grant,
    url: str,
    fields: dict[str, str],
    *,
    ca_file: str | None,
    timeout: float = DEADLINE,
    secrets: tuple[Secret | None, ...] = (),
    before_first_byte: Callable[[], None] = lambda: None,
    endpoint_name: str = "token_endpoint",
) -> PostResult:
    """Send ``fields`` to ``url``, authenticated as ``client``, within ``timeout`` seconds. Follow no redirect.

    ``before_first_byte`` is called before anything is sent; if it raises, nothing is sent. No error text repeats a
    secret of ``client`` or one of ``secrets``. ``endpoint_name`` names the URL in error texts. Raises only
    ``KeyboardInterrupt`` and the like.
    """
    secrets = (client.refresh_token, client.access_token, client.client_secret, *secrets)
    if client.client_assertion_file is not None:
        with suppress(ConfigError):  # the request finds out
            secrets = (*secrets, Secret(client_assertion(client, clocks.now().wall)))
    result = PostResult(secrets)
    # Newest first: when writing fails, httpcore goes on to read and drops the first error.
    errors: list[BaseException] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(".failed"):
            errors.insert(0, info["exception"])
        # The CONNECT request to a proxy is traced too, but it contains no token.
        if event.endswith("send_request_headers.started") and info["request"].method == b"POST":
            before_first_byte()
            result.sent_at = clocks.now()

    async def send() -> bool:
        body, headers = build_request(client, fields, clocks.now().wall)
        parts = urlsplit(url)
        limits = {"connect": min(_CONNECT_TIMEOUT, timeout), "read": timeout, "write": timeout}
        with anyio.move_on_after(timeout) as scope:
            tls = None
            if parts.scheme == "https":
                tls = ssl_context(ca_file, client_cert=client.client_cert, client_key=client.client_key)
            async with (
                aclosing(_connection(url, tls, build_proxy(parts.scheme, parts.hostname or "", _proxy))) as connection,
                connection.stream(
                    "POST",
                    _target(url),
                    headers=[
                        ("Host", urls.parse_origin(url).partition("://")[2]),
                        *headers.items(),
                        ("Connection", "keep-alive"),
                        ("Content-Length", str(len(body))),
                    ],
                    content=body,
                    extensions={"trace": trace, "timeout": limits},
                ) as response,
            ):
                await result.receive(response)
        return not scope.cancelled_caught

    try:
        # The record may have been edited since the import (I8).
        urls.check_endpoint(url)
        result.error = connection_errors.too_slow(url, timeout)
        _run(send)
    except urls.InvalidURL as error:
        result.error = f"the {endpoint_name} {error}"
    except ConfigError as error:
        result.error = str(error)  # refresher's own text: no secrets, but paths that a mask would hide
    except Exception as error:  # noqa: BLE001  any error of the transport: what was sent decides
        errors.insert(0, error)
        result.error = connection_errors.reason(errors, secrets, url)
        result.certificate_refused = connection_errors.refuses_certificate(errors)
    return result


def _connection(
    url: str, tls: ssl.SSLContext | None, proxy: httpcore.Proxy | None
) -> httpcore.AsyncConnectionInterface:
    """Return a new connection for one request; on one that was used, it can be uncertain whether a byte was sent."""
    # httpcore, because the client of httpx takes as much time again as the request.
    pool = httpcore.AsyncConnectionPool(ssl_context=tls, proxy=proxy)
    return pool.create_connection(_target(url).origin)


def _target(url: str) -> httpcore.URL:
    """Return the address of a request, with the path and the query as they are written."""
    parts = urlsplit(url)
    rest = url.partition("://")[2][len(parts.netloc) :].partition("#")[0]
    target = quote(rest if rest.startswith("/") else f"/{rest}", safe=_SAFE)
    return httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=target)


def _proxy(address: str) -> httpcore.Proxy:
    """Return the proxy at ``address``. Raises ``ValueError``."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https", "socks5", "socks5h") or not parts.hostname:
        raise ValueError("it is not the URL of a proxy")
    auth = None
    if parts.username or parts.password:
        auth = (unquote(parts.username or "").encode(), unquote(parts.password or "").encode())
    url = httpcore.URL(scheme=parts.scheme, host=parts.hostname.encode("idna"), port=parts.port, target=b"/")
    return httpcore.Proxy(url, auth=auth)


def _run(request: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Run ``request`` alone in an event loop, in this thread; the loop is kept for the next, if it ended in time."""
    try:
        runner = _idle.pop()
    except IndexError:
        runner = asyncio.Runner(loop_factory=RequestLoop)
        Context().run(runner.get_loop)  # the timers of the loop would keep the context of its first request
    try:
        ended = runner.run(request(), context=copy_context())
    except BaseException:
        runner.close()
        raise
    if ended and len(_idle) < _MOST_IDLE:
        _idle.append(runner)
    else:
        runner.close()


class RequestLoop(asyncio.SelectorEventLoop):
    """A loop whose clock, and so every timeout, counts only the time in which the process runs.

    After a stop (Ctrl-Z, a debugger, a paused machine), an ordinary deadline has passed: the loop would drop the answer
    in the socket unread, perhaps the only copy of a refresh token.
    """

    def __init__(self) -> None:
        self._seen = time.monotonic()
        self._missed = 0.0
        super().__init__()
        self._tick()

    def time(self) -> float:
        """Return monotonic seconds without the time in which the process did not run."""
        now = time.monotonic()
        if now - self._seen > _STOP_THRESHOLD:
            self._missed += now - self._seen
        self._seen = now
        return now - self._missed

    def _tick(self) -> None:
        # A loop that wakes up twice a second recognises a stop by a longer gap.
        self.call_later(_TICK, self._tick)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect to ``address``, the resolved one, if the context permits its network."""
        networks.permit(address[0])
        await super().sock_connect(sock, address)
        networks.connected(address[0])

    async def getaddrinfo(self, *host_and_port: Any, **options: Any) -> Any:
        """Resolve like ``socket.getaddrinfo``, in a thread that the end of the loop does not wait for.

        asyncio would wait for it: a resolver that hangs would hold the lock of a grant beyond the deadline.
        """
        resolved: Future[Any] = Future()
        resolved.set_running_or_notify_cancel()  # from here on it cannot be cancelled, so the thread can always set it

        def resolve() -> None:
            try:
                resolved.set_result(socket.getaddrinfo(*host_and_port, **options))
            except (OSError, UnicodeError, ValueError) as error:
                resolved.set_exception(error)

        threading.Thread(target=resolve, daemon=True, name="resolver").start()
        return await asyncio.wrap_future(resolved)
