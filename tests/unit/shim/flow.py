"""The authorization flow of one request, step by step, with a fake clock."""

from collections.abc import Generator

import httpx
import pytest

import shim._recovery
import shim._source
from shim.httpx import BearerAuth

__all__ = ["BEARER", "ORIGIN", "Clock", "Step", "rejection", "response", "sent", "start", "wait_to_the_end"]

ORIGIN = "https://mcp.example"
BEARER = "Bearer access-token-{}"

Step = httpx.Request | float
"""What a flow yields: the request, to be sent; or seconds to wait."""
Steps = Generator[Step, httpx.Response | None, None]


class Clock:
    """A fake monotonic clock, which only the test moves, because the real wait is 15 seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (shim._recovery, shim._source):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def response(status: int, authorization: str | None, *challenges: str) -> httpx.Response:
    """A response to a request with the header `authorization`."""
    headers = {} if authorization is None else {"authorization": authorization}
    request = httpx.Request("GET", ORIGIN, headers=headers)
    return httpx.Response(status, headers=[("www-authenticate", each) for each in challenges], request=request)


def rejection(authorization: str | None, *challenges: str) -> httpx.Response:
    return response(401, authorization, *challenges)


def start(source: shim._source.FileTokenSource, *, origin: str = ORIGIN, replayable: bool = True, raise_errors: bool = False, wait: float = 15.0) -> Steps:  # fmt: skip
    content = b"" if replayable else iter([b""])
    request = httpx.Request("POST", origin, content=content)
    return BearerAuth(source, wait=wait, raise_errors=raise_errors)._steps(request)


def sent(step: Step) -> str | None:
    assert isinstance(step, httpx.Request)
    authorization: str | None = step.headers.get("authorization")
    return authorization


def wait_to_the_end(steps: Steps, clock: Clock, answer: httpx.Response) -> float:
    """Do every wait until the caller gets its response; return the seconds."""
    began = clock.now
    try:
        step = steps.send(answer)
        while True:
            assert isinstance(step, float), "it sent the rejected token again"
            assert step > 0
            clock.now += step
            step = steps.send(None)
    except StopIteration:
        return clock.now - began
