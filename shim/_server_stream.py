"""The stream on which a server of the older protocol sends notifications and questions (GET).

The SDK's transport gives it up after two failures, without an error. So the transport gets one response that does not
end, and this module opens the real stream again and again behind it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio
import httpx2

from shim._backoff import StreamPauses
from shim._bearer import origin_of_request
from shim._failure import Failure, describe, failure_in, is_event_stream

__all__ = ["MAX_REDIRECTS", "endless_response", "redirect_within_origin"]

_LAST_EVENT_ID = "last-event-id"
MAX_REDIRECTS = 5
_TEMPORARY = (401, 408, 425, 429, 500, 502, 503, 504)

_Send = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
_Report = Callable[[Failure | None, float], None]


async def endless_response(request: httpx2.Request, send: _Send, report: _Report) -> httpx2.Response:
    """Return a response whose events are those of ``request``, sent by ``send`` again each time the stream ends.

    ``report`` is called with why the stream is down, ``None`` if it is open, and when it was requested (monotonic).
    """
    stream = _EndlessStream(request, send, report)
    await stream.open()
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=stream, request=request)


class _EndlessStream(httpx2.AsyncByteStream):
    def __init__(self, request: httpx2.Request, send: _Send, report: _Report) -> None:
        self.response: httpx2.Response | None = None
        """The response of the latest request, ``None`` if it failed."""
        self._request = request
        self._send = send
        self._report_change = report
        self._failure = ""
        """Why the latest request failed."""
        self._pauses = StreamPauses()
        self._was_open = False
        self._sent_at = 0.0
        self._retry: float | None = None
        """The seconds that the server asks for."""

    async def open(self) -> None:
        """Send the request."""
        self._sent_at = self._pauses.attempt()
        self.response = None
        try:
            for _ in range(MAX_REDIRECTS):
                self.response = await self._send(self._request)
                if (target := redirect_within_origin(self.response)) is None:
                    return
                await self.response.aclose()
                self._request = target
        except Exception as error:  # noqa: BLE001  the connection can break in any way, and the next attempt follows
            self.response, self._failure = None, describe(error)

    async def aclose(self) -> None:
        """Close the stream of the server."""
        if self.response is not None:
            await self.response.aclose()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            failure = Failure("lost", self._failure)
            if self.response is not None:
                async with aclosing(self._events(self.response)) as events:
                    async for event in events:
                        yield event
                failure = await self._end(self.response)
                await self.response.aclose()
            self._report(failure)
            await anyio.sleep(self._pauses.next(self._retry))
            await self.open()

    async def _events(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        """Yield whole events: the start of an event whose rest is lost must not mix with the next stream."""
        if not is_event_stream(response):
            return
        self._was_open = True
        self._pauses.opened()
        self._report(None)
        try:
            async for event in httpx2.EventSource(response):
                if event.id:
                    self._pauses.worked()
                    self._request.headers[_LAST_EVENT_ID] = event.id
                if event.retry is not None:
                    self._retry = event.retry / 1000
                if event.data:
                    self._pauses.worked()
                    lines = "".join(f"data: {line}\n" for line in event.data.split("\n"))
                    yield f"event: {event.event}\n{lines}\n".encode()
        except Exception as error:  # noqa: BLE001  as in open()
            self._failure = describe(error)
        else:
            self._failure = "the server ended the stream"

    async def _end(self, response: httpx2.Response) -> Failure:
        """Return why there is no stream any more. Does not return if the server offers none."""
        if is_event_stream(response):
            return Failure("lost", self._failure)
        status = response.status_code
        try:
            await response.aread()
        except Exception as error:  # noqa: BLE001  as in open()
            return Failure("lost", describe(error))
        failure = failure_in(self._request, response)
        is_refusal = status not in _TEMPORARY and (failure is None or failure.kind != "insufficient_scope")
        if is_refusal and not self._was_open:
            await response.aclose()
            self._report(None)  # what failed before has ended
            await anyio.sleep_forever()
        return failure or Failure("unavailable", f"the server answered {status}")

    def _report(self, failure: Failure | None) -> None:
        self._report_change(failure, self._sent_at)


def redirect_within_origin(response: httpx2.Response) -> httpx2.Request | None:
    """Return the request that follows a redirect, if it keeps method and origin: other redirects are not followed."""
    target, request = response.next_request, response.request
    if target is None or target.method != request.method:
        return None
    return target if origin_of_request(target.url) == origin_of_request(request.url) else None
