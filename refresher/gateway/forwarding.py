"""Forward a request to the server of its grant, and the answer to the agent: as a stream, both ways."""

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from refresher.common.throttle import Tally
from refresher.gateway import routes
from refresher.gateway.access import Access
from refresher.gateway.connections import accept
from refresher.gateway.endpoint_event import EndpointEvents, LeadsAway
from refresher.gateway.failures import Failure, from_problem
from refresher.gateway.headers import for_agent, for_server, has_events, is_readable, is_writable, wants_events
from refresher.gateway.routes import Destination, Target
from shim import FileTokenSource
from shim._origins import origin_of_url
from shim._recovery import DEFAULT_WAIT, Answer, recovery
from shim._token import TokenFile
from shim.errors import ShimError

__all__ = ["Forwarder"]

log = logging.getLogger(__name__)

_LARGEST_KEPT: Final = 64 * 1024
"""Bytes of a request body that is kept until the server accepts the token; a longer one is never sent twice."""

_CONNECT_TIMEOUT: Final = 30.0
_ANSWER_TIMEOUT: Final = 300.0
"""Seconds from the end of a request to the headers of its answer: a tool call may take minutes."""
_SILENCE: Final = 60.0
"""Seconds for the next part of a request body, and for the whole of one that is kept."""
_SEND_AGAIN: Final = 5
"""Seconds in which a demanded token usually comes."""
_UPSTREAM_KEPT: Final = 4.0
"""Seconds that an idle connection is kept: servers close theirs after 5 s, and a request then would be lost."""
_LARGEST_HEADER: Final = 64 * 1024
_READ_AHEAD: Final = 64 * 1024
"""Bytes of an answer that are read before the agent takes them; a little more in practice."""

# aiohttp adds nothing that the agent did not send.
_NOT_ADDED: Final = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)


_OLD: Final = Failure(505, "no_http11", "the gateway speaks HTTP/1.1 only; nginx needs 'proxy_http_version 1.1;'")
_BAD_HEADER: Final = Failure(400, "bad_request", "a header has a control character, or is not in UTF-8")
_CUT_OFF: Final = Failure(400, "incomplete_request", "the body of the request ended early")
_SLOW: Final = Failure(408, "slow_request", "the body of the request did not come in time")


class _NoBody(aiohttp.ClientError):
    """The agent did not complete the body of its request."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure: Final = failure


class Forwarder:
    """Answers the requests of agents."""

    def __init__(
        self,
        access: Access,
        source: Callable[[str], FileTokenSource],
        *,
        tls: ssl.SSLContext,
        proxy: Callable[[str, str], str | None],
        program: str = "refresher",
    ) -> None:
        """``source``: makes the token source of a name. ``proxy``: the proxy for a scheme and a host.

        ``program``: with what the commands begin that a person must run.
        """
        self._program = program
        self._access = access
        self._make_source = source
        self._sources: dict[str, FileTokenSource] = {}
        self._proxy = proxy
        self._failures = Tally()
        self.streams: Final[set[asyncio.Task[None]]] = set()
        """Those that listen for events: nothing is lost when they end."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=_UPSTREAM_KEPT),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
            auto_decompress=False,
            read_bufsize=_READ_AHEAD,
            skip_auto_headers=_NOT_ADDED,
            max_line_size=_LARGEST_HEADER,
            max_field_size=_LARGEST_HEADER,
        )

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._session.close()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        transport = request.transport
        connection = None if transport is None else transport.get_extra_info("socket")
        refused = self._access.refusal(request.headers, request.headers.getall("Host", []), connection)
        if refused is not None:
            return self._failed("", refused)
        if request.version != aiohttp.HttpVersion11:  # an older client cannot see that an answer breaks off
            return self._failed("", _OLD)
        if not is_writable(request.headers):
            return self._failed("", _BAD_HEADER)
        # A server answers TRACE with the request that it got, and so with the token.
        if request.method in ("CONNECT", "TRACE") or "Upgrade" in request.headers:
            text = "the gateway forwards no CONNECT, TRACE or Upgrade request"
            return self._failed("", Failure(501, "no_proxy", text))
        target = routes.parse(request.raw_path)
        if isinstance(target, Failure):
            return self._failed("", target)
        refused = self._access.key_refusal(request.headers, target)
        if refused is not None:
            return self._failed("", refused)
        accept(request)
        source = self._source(target.name)
        if isinstance(source, Failure):
            return self._failed("", source)
        answered = await self._forward(request, target, source)
        return self._failed(target.name, answered) if isinstance(answered, Failure) else answered

    def refuse(self, failure: Failure) -> web.Response:
        """Log why something is no request, and return the answer."""
        return self._failed("", failure)

    def _failed(self, name: str, failure: Failure) -> web.Response:
        """Log a failure, and return the answer."""
        failure = failure.with_program(self._program)
        at = f" at {failure.server}" if failure.server else ""
        # No sender can choose one of these freely: there are as many as grants and their servers.
        count = self._failures.count((name, failure.server, failure.error))
        often = f" ({count} times since the last line)" if count > 1 else ""
        log.log(
            logging.WARNING if count else logging.DEBUG,
            "%s: gateway: %s%s: %s%s",
            name or "-",
            failure.error,
            at,
            failure.message,
            often,
        )
        return web.Response(status=failure.status, headers=failure.headers(), body=failure.body())

    def _source(self, name: str) -> FileTokenSource | Failure:
        """Return the token source of a grant, if there is such a grant."""
        known = self._sources.get(name)
        if known is not None:
            return known
        source = self._make_source(name)
        if source.current() is None:
            text = f"there is no usable token of {name}: {source.problem()}"
            return Failure(404, "unknown_grant", text, f"refresher login {name} URL")
        self._sources[name] = source
        return source

    async def _forward(
        self, request: web.BaseRequest, target: Target, source: FileTokenSource
    ) -> web.StreamResponse | Failure:
        token = source.current()
        if token is None:
            return Failure(503, "no_token", f"there is no token of {target.name}")
        to = routes.choose(target, token)
        if isinstance(to, Failure):
            return to
        length = request.content_length
        whole: bytes | None = None  # of a body that can be sent again
        if not request.body_exists:
            whole, length = b"", length if length == 0 else None
        elif length is not None and length <= _LARGEST_KEPT:
            try:
                _continue(request)
                async with asyncio.timeout(_SILENCE):
                    whole = await request.read()
            except TimeoutError:
                return _SLOW
            except (OSError, web.RequestPayloadError):
                return _CUT_OFF
        steps = recovery(source, to.origin, wait=DEFAULT_WAIT, replayable=lambda: whole is not None)
        step = next(steps)
        if step is None:
            error = source.problem() or ShimError(f"there is no token of {target.name} for {to.origin}")
            return from_problem(error, to.origin, token.error and _seconds_until(token.error.retry_at))
        while True:
            assert isinstance(step, str)  # noqa: S101  for the type checker: each wait is over
            try:
                answer = await self._send(request, to, step, whole, length)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                return _unreachable(to.origin, error)
            async with answer:
                try:
                    step = steps.send(Answer(answer.status, answer.headers.getall("WWW-Authenticate", ())))
                    answer.close()  # its body is not needed, and can be long
                    while isinstance(step, float):
                        await asyncio.sleep(step)
                        step = next(steps)
                except StopIteration as end:
                    problem = end.value
                    if problem is None:
                        return await self._pass_on(request, to, answer, target.name)
                    answer.close()
                    if whole is None:
                        return _not_replayed(problem, to.origin, source.current())
                    return from_problem(problem, to.origin)

    async def _send(
        self, request: web.BaseRequest, to: Destination, authorization: str, whole: bytes | None, length: int | None
    ) -> aiohttp.ClientResponse:
        """Send a request, and return its answer once the headers have come."""
        scheme, _, host = to.origin.partition("://")
        server = URL(to.origin)
        # The path with the query, in one piece: nothing is parsed, so nothing is changed.
        url = URL.build(scheme=scheme, host=server.host or host, port=server.port, path=to.rest, encoded=True)
        headers = for_server(request.headers, authorization, length)
        if wants_events(request.method, request.headers):
            headers["Accept-Encoding"] = "identity"  # endpoint events must be readable
        async with asyncio.timeout(None) as limit:

            def sent() -> None:
                with suppress(RuntimeError):  # the answer began before the body ended: the limit is over
                    limit.reschedule(asyncio.get_running_loop().time() + _ANSWER_TIMEOUT)

            data: bytes | _Body | None = whole or None
            if whole is None:
                data = _Body(request, sent)
            else:
                sent()
            return await self._session.request(
                request.method,
                url,
                headers=headers,
                data=data,
                allow_redirects=False,
                proxy=self._proxy(scheme, server.host or host),
            )

    async def _pass_on(
        self, request: web.BaseRequest, to: Destination, answer: aiohttp.ClientResponse, name: str
    ) -> web.StreamResponse | Failure:
        """Pass the answer of a server on to the agent."""
        if answer.status in (401, 407):
            answer.close()
            text = f"{to.origin} asks for another kind of login than the token of {name}"
            return Failure(502, "token_rejected", text, server=to.origin)
        eventful = has_events(request.method, answer.headers)
        if eventful and not is_readable(answer.headers):
            answer.close()
            text = f"{to.origin} sent events that are compressed or not in UTF-8, or with two content types"
            return Failure(502, "bad_answer", text, server=to.origin)
        headers = for_agent(answer.headers)
        if not is_writable(headers, answer.reason):
            answer.close()
            text = f"{to.origin} sent a header that has a control character, or is not in UTF-8"
            return Failure(502, "bad_answer", text, server=to.origin)
        if (location := answer.headers.get("Location")) is not None:
            moved = routes.relocate(location, to)
            if moved is not None:
                headers["Location"] = moved
            elif 300 <= answer.status < 400:
                answer.close()
                elsewhere = origin_of_url(location) or "an address that is not valid"
                text = f"{to.origin} redirects to {elsewhere}, which is not a server of {name}"
                return Failure(502, "leads_away", text, server=to.origin)
            else:
                del headers["Location"]  # of something that was made: only its address is lost
        headers.setdefault("Server", "refresher")
        content = answer.content
        events: EndpointEvents | None = None
        if eventful:
            events = EndpointEvents(lambda address: routes.relocate(address, to))
            headers.popall("Content-Length", None)
        elif content.is_eof() and content.exception() is None and request.method != "HEAD":
            # All of it has come already: one write to the agent instead of two.
            return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=await content.read())
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)
        task = asyncio.current_task()
        if events is not None and task is not None:
            self.streams.add(task)
        try:
            async for data in content.iter_any():
                if events is None:
                    await response.write(data)
                elif passed := events.feed(data):
                    await response.write(passed)
            if events is not None and (rest := events.rest()):
                await response.write(rest)
            await response.write_eof()
        except (aiohttp.ClientError, LeadsAway) as error:
            # The agent must see that the answer is not complete, so it ends without its end.
            away = isinstance(error, LeadsAway)
            kind = "leads_away" if away else "truncated"
            text = "an endpoint event leads out of its servers" if away else "the server ended an answer early"
            self._failed(name, Failure(502, kind, text, server=to.origin))
            _cut(request)
            raise ConnectionResetError from None
        finally:
            if task is not None:
                self.streams.discard(task)
        return response


class _Body:
    """The body of a request as it comes. It can be sent once only."""

    def __init__(self, request: web.BaseRequest, sent: Callable[[], None]) -> None:
        self._request: web.BaseRequest | None = request
        self._sent = sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        request, self._request = self._request, None
        if request is None:
            raise _NoBody(_CUT_OFF)
        _continue(request)
        content = request.content
        while True:
            try:
                async with asyncio.timeout(_SILENCE):
                    data = await content.readany()
            except TimeoutError:
                raise _NoBody(_SLOW) from None
            except (OSError, web.RequestPayloadError):
                raise _NoBody(_CUT_OFF) from None
            if not data:
                break
            yield data
        self._sent()


def _continue(request: web.BaseRequest) -> None:
    """Have an agent that waits for it send the body."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _cut(request: web.BaseRequest) -> None:
    """End the connection to the agent in a way that shows that the answer is not complete."""
    if request.transport is not None:
        request.transport.close()  # what was written is sent; the chunk or the length that is missing says the rest


def _seconds_until(at: float | None) -> int | None:
    return None if at is None else max(1, round(at - time.time()))


def _not_replayed(problem: ShimError, origin: str, token: TokenFile | None) -> Failure:
    """Return the failure of a request whose token was refused and whose body is gone."""
    failure = from_problem(problem, origin)
    if failure.error != "token_rejected":
        return failure
    text = f"{origin} refused the token, and a new one was demanded; send the request again: its body was not kept"
    # Often there is a new token at once. After failures, or if the server has refused several, refresher waits.
    pause = None if token is None or token.error is None else _seconds_until(token.error.retry_at)
    return Failure(503, "send_again", text, retry_after=max(pause or 0, _SEND_AGAIN), server=origin)


def _unreachable(origin: str, error: Exception) -> Failure:
    """Return why a server gave no answer, in plain words."""
    cause = error if error.__cause__ is None else error.__cause__
    if isinstance(cause, _NoBody):
        return cause.failure
    if isinstance(error, TimeoutError):
        return Failure(504, "no_answer", f"{origin} did not answer in time; try again", server=origin)
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        why = "its certificate is not trusted" if "CERTIFICATE_VERIFY" in str(error) else "TLS fails"
        return Failure(502, "unreachable", f"cannot reach {origin}: {why}", server=origin)
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(cause, socket.gaierror):
        return Failure(502, "unreachable", f"cannot reach {origin}: its name is not known", server=origin)
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        words = os.strerror(number).lower() if number is not None and number > 0 else "no connection"
        return Failure(502, "unreachable", f"cannot reach {origin}: {words}", server=origin)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failure(502, "unreachable", f"{origin} closed the connection without an answer", server=origin)
    return Failure(502, "bad_answer", f"{origin} gave an answer that is not valid HTTP", server=origin)
