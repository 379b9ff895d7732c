"""One POST of a client to an authorization server: one deadline over all of it, and what is known at any instant.

An event loop exists only in here, to hold one deadline over resolving, connecting, TLS, sending and reading alike:
the time-outs of an HTTP library are per operation, and one byte a second outlives them all.
"""

import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import ConfigError
from refresher.common.secret import Secret
from refresher.grants.outcome import Outcome
from refresher.grants.record import Grant
from refresher.oauth import connection_errors, token_response, urls
from refresher.oauth.event_loop import ExchangeLoop
from refresher.oauth.proxies import made_for
from refresher.oauth.tls import trusted

__all__ = ["Posted", "post"]

_CONNECT: Final = 10.0
_LARGEST_BODY: Final = 1024 * 1024


class Posted:
    """What is known of a request at any instant, also when a deadline cuts it."""

    def __init__(self) -> None:
        self.sent: Moment | None = None
        """When its first byte left; ``None``: none did."""
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        """As it came over the wire."""
        self.whole = False
        self.problem = ""
        """Why there is no answer, in words without secrets."""
        self.certificate_refused = False
        """The server ended the TLS handshake for want of a client certificate that it accepts."""
        self._errors: list[BaseException] = []
        # What went wrong on the way, the last first: the library goes on reading where writing fails, and forgets.

    def judged(self, known: tuple[Secret | None, ...]) -> Outcome:
        """Return what the answer means, where there is one; ``known``: the secrets that no word may repeat."""
        return token_response.judge(
            self.status or 0,
            self.headers,
            self.unpacked(),
            whole=self.whole,
            now=clocks.now().wall,
            known=known,
        )

    def unpacked(self) -> bytes:
        """Return the body, unpacked where a server has packed it unasked, bounded; else as it is."""
        body = bytes(self.body)
        if not body.startswith(b"\x1f\x8b"):
            return body
        try:
            return zlib.decompressobj(wbits=31).decompress(body, _LARGEST_BODY) or body
        except zlib.error:
            return body


def post(
    client: Grant,
    url: str,
    compose: Callable[[], tuple[bytes, dict[str, str]]],
    *,
    ca_file: str | None,
    limit: float,
    known: tuple[Secret | None, ...],
    before_first_byte: Callable[[], None] = lambda: None,
    what: str = "token_endpoint",
) -> Posted:
    """Send what ``compose`` returns (body, headers) to ``url``, through no redirect, within ``limit`` seconds.

    Shows the certificate of ``client`` where it has one. ``before_first_byte`` is called before anything leaves; where
    it raises, nothing does. ``known``: the secrets that no word may repeat. ``what``: how a person calls the address.
    Raises nothing but ``KeyboardInterrupt`` and the like.
    """
    posted = Posted()
    try:
        # Somebody may have changed a record since its import (I8).
        urls.endpoint(url)
    except urls.BadURL as error:
        posted.problem = f"the {what} {error}"
        return posted
    posted.problem = f"it took longer than {limit:.0f} s"
    try:
        anyio.run(
            _post,
            url,
            compose,
            lambda: trusted(ca_file, client_cert=client.client_cert, client_key=client.client_key),
            limit,
            before_first_byte,
            posted,
            backend_options={"loop_factory": ExchangeLoop},
        )
    except ConfigError as error:
        posted.problem = str(error)  # our own words hold no secret, but paths that a mask would hide
    except Exception as error:  # noqa: BLE001  whatever a transport raises, what was sent decides
        errors = (error, *posted._errors)  # noqa: SLF001  its own
        posted.problem = connection_errors.reason(errors, known)
        posted.certificate_refused = connection_errors.refuses_certificate(errors)
    return posted


async def _post(
    url: str,
    compose: Callable[[], tuple[bytes, dict[str, str]]],
    trust: Callable[[], ssl.SSLContext],
    limit: float,
    before_first_byte: Callable[[], None],
    posted: Posted,
) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(".failed"):
            posted._errors.insert(0, info["exception"])  # noqa: SLF001  its own
        # A proxy's CONNECT is traced too; it carries no token.
        if event.endswith("send_request_headers.started") and info["request"].method == b"POST":
            before_first_byte()
            posted.sent = clocks.now()

    parts = urlsplit(url)
    body, headers = compose()
    with anyio.move_on_after(limit):
        async with (
            httpx.AsyncClient(
                verify=trust() if parts.scheme == "https" else False,
                # httpx's own reading of NO_PROXY fails on IPv6 networks and quotes proxy passwords in its errors.
                trust_env=False,
                proxy=made_for(parts.scheme, parts.hostname or "", httpx.Proxy),
                follow_redirects=False,
                timeout=httpx.Timeout(limit, connect=min(_CONNECT, limit)),
            ) as client,
            client.stream("POST", url, content=body, headers=headers, extensions={"trace": trace}) as response,
        ):
            posted.headers = {name.lower(): value for name, value in response.headers.items()}
            posted.status = response.status_code
            # Raw: where a server mislabels its encoding, a decoder would throw the only copy away.
            async for chunk in response.aiter_raw():
                posted.body += chunk[: _LARGEST_BODY - len(posted.body)]
                if len(posted.body) >= _LARGEST_BODY:
                    return
            # Without a length nobody can tell an end from a connection that broke off; only JSON shows its own.
            posted.whole = not posted.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
