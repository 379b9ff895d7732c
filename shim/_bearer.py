"""The code that ``shim.httpx`` and ``shim.httpx2`` share: both libraries call the same two methods."""

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from shim._flow import DEFAULT_WAIT, Response, Send, Step, Wait, flow
from shim._origins import origin_of
from shim._source import FileTokenSource

__all__ = ["BearerFlow"]

# A 401 has a short body. A longer or slower one is cut off, so that it does not delay the recovery.
_LONGEST_BODY = 64 * 1024
_SLOWEST_BODY = 5.0

_SENT_BY_US = "shim.authorization"


class BearerFlow:
    """Attaches the current token to each request, and recovers from a 401."""

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
        step = _next(steps, None)
        while isinstance(step, Send):
            response = yield _authorize(request, step)
            step = _next(steps, _response(response))
            if step is not None:
                self._replace_body(response, _read_body(response))
            while isinstance(step, Wait):
                time.sleep(step.seconds)
                step = _next(steps, None)
            if step is not None:
                self._replace_body(response, b"")

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Authorize a request of an ``AsyncClient``."""
        steps = self._steps(request)
        step = _next(steps, None)
        while isinstance(step, Send):
            response = yield _authorize(request, step)
            step = _next(steps, _response(response))
            if step is not None:
                self._replace_body(response, await _read_body_async(response))
            while isinstance(step, Wait):
                import anyio

                await anyio.sleep(step.seconds)
                step = _next(steps, None)
            if step is not None:
                self._replace_body(response, b"")

    def _steps(self, request: Any) -> Generator[Step, Response | None, None]:
        url = request.url
        return flow(
            self.source,
            origin_of(url.scheme, url.raw_host.decode("ascii"), url.port),
            wait=self._wait,
            replayable=_is_replayable(request),
            raise_errors=self._raise_errors,
        )

    def _replace_body(self, response: Any, body: bytes) -> None:
        """Let ``body`` be read as the body of ``response``, whose connection is closed or back in the pool.

        The library reads each response before it sends the next request. An empty body cannot fail to be decoded.
        """
        response.stream = self._byte_stream(body)
        response.is_closed = response.is_stream_consumed = False


def _next(steps: Generator[Step, Response | None, None], response: Response | None) -> Step | None:
    try:
        return steps.send(response)
    except StopIteration:
        return None


def _authorize(request: Any, step: Send) -> Any:
    # A caller can send one request object twice: a header from the first time must not stay after its token is gone.
    if step.authorization is None:
        if request.headers.get("authorization") == request.extensions.get(_SENT_BY_US, ""):
            del request.headers["authorization"]
        return request
    request.headers["Authorization"] = request.extensions[_SENT_BY_US] = step.authorization
    return request


def _response(response: Any) -> Response:
    return Response(
        status=response.status_code,
        challenges=tuple(response.headers.get_list("www-authenticate")),
        authorization=response.request.headers.get("authorization"),
    )


def _is_replayable(request: Any) -> bool:
    # Bytes and JSON are in memory. A stream is not, and is never buffered in case of a 401.
    try:
        request.content  # noqa: B018  the access is the test
    except RuntimeError:
        return False
    return True


def _read_body(response: Any) -> bytes:
    """Read the body of a 401, so that its connection is free. The body stays encoded, because nobody may need it."""
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
