"""The part of ``BearerAuth`` that httpx and httpx2 share: both call the same two methods."""

import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

from shim._flow import WAIT, Answer, Send, Step, Wait, flow
from shim._source import FileTokenSource, origin_of

__all__ = ["BearerFlow"]


class BearerFlow:
    """Attaches the current token to each request, and turns a 401 into one recovery."""

    def __init__(self, source: FileTokenSource | str, *, wait: float = WAIT, raise_errors: bool = False) -> None:
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        self._wait = wait
        self._raise_errors = raise_errors

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Take a request of a ``Client`` through."""
        steps = self._steps(request)
        answer = None
        while (step := _next(steps, answer)) is not None:
            answer = None
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                continue
            response = yield _with(request, step)
            answer = _answer(response)
            if answer.status == 401 and step.authorization is not None:
                # Read, it gives its connection back: requests that wait must not hold the pool.
                response.read()

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Take a request of an ``AsyncClient`` through."""
        steps = self._steps(request)
        answer = None
        while (step := _next(steps, answer)) is not None:
            answer = None
            if isinstance(step, Wait):
                import anyio

                await anyio.sleep(step.seconds)
                continue
            response = yield _with(request, step)
            answer = _answer(response)
            if answer.status == 401 and step.authorization is not None:
                await response.aread()

    def _steps(self, request: Any) -> Generator[Step, Answer | None, None]:
        url = request.url
        return flow(
            self.source,
            origin_of(url.scheme, url.raw_host.decode("ascii"), url.port),
            wait=self._wait,
            replayable=_is_replayable(request),
            raise_errors=self._raise_errors,
        )


def _next(steps: Generator[Step, Answer | None, None], answer: Answer | None) -> Step | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None


def _with(request: Any, step: Send) -> Any:
    if step.authorization is not None:
        request.headers["Authorization"] = step.authorization
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
