"""The part of ``BearerAuth`` that httpx and httpx2 share: both call the same two methods."""

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from shim._flow import WAIT, Answer, Send, Step, Wait, flow
from shim._origins import origin_of
from shim._source import FileTokenSource

__all__ = ["BearerFlow"]

# A refusal is short. What is longer, or drips, is cut off, so that it cannot hold up what comes after it.
_LONGEST_REFUSAL = 64 * 1024
_SLOWEST_REFUSAL = 5.0

_OURS = "shim.authorization"


class BearerFlow:
    """Attaches the current token to each request, and turns a 401 into one recovery."""

    _byte_stream: ClassVar[Any]
    """The library's own ``ByteStream``."""

    def __init__(self, source: FileTokenSource | str, *, wait: float = WAIT, raise_errors: bool = False) -> None:
        if not isinstance(source, str | FileTokenSource):
            raise TypeError("BearerAuth needs a name, or a FileTokenSource")
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        self._wait = float(wait)
        if not self._wait >= 0:
            raise ValueError("wait must be seconds, 0 or more")
        self._raise_errors = raise_errors

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Take a request of a ``Client`` through."""
        steps = self._steps(request)
        step = _next(steps, None)
        while isinstance(step, Send):
            response = yield _with(request, step)
            step = _next(steps, _answer(response))
            if step is not None:
                self._replace_body(response, _drained(response))
            while isinstance(step, Wait):
                time.sleep(step.seconds)
                step = _next(steps, None)
            if step is not None:
                self._replace_body(response, b"")

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Take a request of an ``AsyncClient`` through."""
        steps = self._steps(request)
        step = _next(steps, None)
        while isinstance(step, Send):
            response = yield _with(request, step)
            step = _next(steps, _answer(response))
            if step is not None:
                self._replace_body(response, await _adrained(response))
            while isinstance(step, Wait):
                import anyio

                await anyio.sleep(step.seconds)
                step = _next(steps, None)
            if step is not None:
                self._replace_body(response, b"")

    def _steps(self, request: Any) -> Generator[Step, Answer | None, None]:
        url = request.url
        return flow(
            self.source,
            origin_of(url.scheme, url.raw_host.decode("ascii"), url.port),
            wait=self._wait,
            replayable=_is_replayable(request),
            raise_errors=self._raise_errors,
        )

    def _replace_body(self, response: Any, body: bytes) -> None:
        """Let ``response`` be read again, from memory; the library reads each answer before it sends the next request.

        Its connection has gone back to the pool by then, or has been closed.
        """
        response.stream = self._byte_stream(body)
        response.is_closed = response.is_stream_consumed = False


def _next(steps: Generator[Step, Answer | None, None], answer: Answer | None) -> Step | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None


def _with(request: Any, step: Send) -> Any:
    # A caller may send one request object twice: a token that is not for it any more must not go along.
    if step.authorization is None:
        if request.headers.get("authorization") == request.extensions.get(_OURS, ""):
            del request.headers["authorization"]
        return request
    request.headers["Authorization"] = request.extensions[_OURS] = step.authorization
    return request


def _answer(response: Any) -> Answer:
    return Answer(
        status=response.status_code,
        challenges=tuple(response.headers.get_list("www-authenticate")),
        carried=response.request.headers.get("authorization"),
    )


def _is_replayable(request: Any) -> bool:
    # Bytes and JSON are there as a whole; a stream is not, and is never buffered for the sake of a 401.
    try:
        request.content  # noqa: B018  asking is the test
    except RuntimeError:
        return False
    return True


def _drained(response: Any) -> bytes:
    """Read a refusal to its end, so that its connection can serve others; raw, for nobody may want it decoded."""
    body = bytearray()
    ends = time.monotonic() + _SLOWEST_REFUSAL
    with suppress(Exception):  # a refusal that breaks off is still a refusal
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > _LONGEST_REFUSAL or time.monotonic() > ends:
                break
    response.close()
    return bytes(body[:_LONGEST_REFUSAL])


async def _adrained(response: Any) -> bytes:
    import anyio

    body = bytearray()
    with suppress(Exception), anyio.move_on_after(_SLOWEST_REFUSAL):
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _LONGEST_REFUSAL:
                    break
    await response.aclose()
    return bytes(body[:_LONGEST_REFUSAL])
