"""The code that ``shim.httpx`` and ``shim.httpx2`` share: attach the token, and recover from a rejection."""

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from shim._origins import origin_of
from shim._recovery import DEFAULT_WAIT, Answer, recovery
from shim._source import FileTokenSource

__all__ = ["CONNECT_TIMEOUT", "DEFAULT_WAIT", "READ_TIMEOUT", "BearerFlow", "origin_of_request"]

CONNECT_TIMEOUT = 30.0
READ_TIMEOUT = 300.0
"""The time-outs of the MCP SDK's own HTTP client, in seconds: a tool call may take minutes."""

# A 401 has a short body. A longer or slower one is cut off, so that it does not delay the recovery.
_LONGEST_BODY = 64 * 1024
_SLOWEST_BODY = 5.0

_SENT_BY_US = "shim.authorization"


class BearerFlow:
    """Sends the current token of a name, or of a ``FileTokenSource``, with each request to the token's origins.

    If the server rejects the token (401, or ``invalid_token`` in a challenge), it sends the request again with a newer
    token. If there is none yet, it demands a rotation and waits; all requests of one rejected token share one demand
    and one wait of ``wait`` seconds. It does not resend a body that is a stream.

    If no newer token comes, or the token lacks a scope, the caller gets the server's own response, and
    ``auth.source.problem()`` says why.
    ``raise_errors=True`` raises that problem instead; inside an MCP session this ends the session. On a redirect from
    ``http://host`` to ``https://host``, the library keeps the header; on a redirect to any other origin, it drops it.
    """

    _byte_stream: ClassVar[Any]
    """The ``ByteStream`` class of the HTTP library."""

    def __init__(
        self, source: FileTokenSource | str, *, wait: float = DEFAULT_WAIT, raise_errors: bool = False
    ) -> None:
        if not isinstance(source, str | FileTokenSource):
            raise TypeError("BearerAuth needs the name of a grant, or a FileTokenSource")
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        self._wait = float(wait)
        if not self._wait >= 0:
            raise ValueError("wait must be a number of seconds, 0 or more")
        self._raise_errors = raise_errors

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Authorize a request of a ``Client``."""
        steps = self._steps(request)
        step = next(steps)
        while step is request:
            response = yield request
            step = _next(steps, response)
            if step is not None:
                self._set_body(response, _read_body(response))
            while isinstance(step, float):
                time.sleep(step)
                step = _next(steps, None)
            if step is not None:
                self._set_body(response, b"")

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Authorize a request of an ``AsyncClient``."""
        steps = self._steps(request)
        step = next(steps)
        while step is request:
            response = yield request
            step = _next(steps, response)
            if step is not None:
                self._set_body(response, await _read_body_async(response))
            while isinstance(step, float):
                import anyio

                await anyio.sleep(step)
                step = _next(steps, None)
            if step is not None:
                self._set_body(response, b"")

    def _set_body(self, response: Any, body: bytes) -> None:
        """Let ``body`` be read as the body of ``response``, whose connection is closed or back in the pool.

        The library reads each response before it sends the next request. An empty body cannot fail to be decoded.
        """
        response.stream = self._byte_stream(body)
        response.is_closed = response.is_stream_consumed = False

    def _steps(self, request: Any) -> Generator[Any, Any, None]:
        """Yield ``request`` when it is to be sent, for its response; or the seconds to wait, without a connection.

        The caller of the HTTP library gets the last response. Raises a ``ShimError``, only if ``raise_errors``.
        """
        source, origin = self.source, origin_of_request(request.url)
        steps = recovery(source, origin, wait=self._wait, replayable=lambda: _is_replayable(request))
        step = next(steps)
        if step is None:
            token = source.current()
            if self._raise_errors and (token is None or token.access_token is None) and (problem := source.problem()):
                raise problem
            source.prepare(token, origin)
            # A caller can send a request object twice: a header from the first time must not outlive its token.
            if request.headers.get("authorization") == request.extensions.get(_SENT_BY_US, ""):
                del request.headers["authorization"]
            yield request
            return
        try:
            while True:
                if isinstance(step, float):
                    yield step
                    step = next(steps)
                    continue
                request.headers["Authorization"] = request.extensions[_SENT_BY_US] = step
                response = yield request
                if response.request.headers.get("authorization") != step:
                    return  # a redirect to another origin has dropped our header
                challenges = response.headers.get_list("www-authenticate")
                step = steps.send(Answer(response.status_code, challenges))
        except StopIteration as end:
            problem = end.value
        if self._raise_errors and problem is not None:
            raise problem


def origin_of_request(url: Any) -> str:
    """Return the origin of a URL of the HTTP library."""
    return origin_of(url.scheme, url.raw_host.decode("ascii"), url.port)


def _next(steps: Generator[Any, Any, None], response: Any) -> Any:
    try:
        return steps.send(response)
    except StopIteration:
        return None


def _is_replayable(request: Any) -> bool:
    # Bytes and JSON are in memory. A stream is not, and is never buffered in case of a 401.
    try:
        request.content  # noqa: B018  the access is the test
    except RuntimeError:
        # The library reads the files of a form from their start each time, if it could find out their length.
        return type(request.stream).__name__ == "MultipartStream" and "content-length" in request.headers
    return True


def _read_body(response: Any) -> bytes:
    """Read the body of a 401, so that its connection is free. The body stays encoded: it may not be needed."""
    body = bytearray()
    ends = time.monotonic() + _SLOWEST_BODY
    with suppress(Exception):  # a 401 whose body breaks off is still a 401
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > _LONGEST_BODY or time.monotonic() > ends:
                break
    response.close()
    return bytes(body[:_LONGEST_BODY])


async def _read_body_async(response: Any) -> bytes:
    import anyio

    body = bytearray()
    with suppress(Exception), anyio.move_on_after(_SLOWEST_BODY):
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _LONGEST_BODY:
                    break
    await response.aclose()
    return bytes(body[:_LONGEST_BODY])
