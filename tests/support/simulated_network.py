"""A simulated network with faults at each step of a request, which can also kill the process that sends it.

It is the transport of the HTTP client of the product. ``tests/faults/test_lost_answers.py`` tests real connections, but
those cannot last hours of a simulated clock.
"""

from collections.abc import AsyncIterable
from types import SimpleNamespace
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl

import httpcore

from tests.support.model_server import Answer
from tests.support.observer import Observer
from tests.support.simulated_clock import Happening, SimulatedClock

__all__ = ["Fault", "Killed", "SimulatedNetwork", "Trouble"]

Fault = Literal[
    "none",
    "unreachable",
    "lost on the way there",
    "lost on the way back",
    "error before",
    "error after",
    "garbled",
    "busy",
    "refused",
    "resource refused",
    "client rejected",
    "killed before its mark",
    "killed after its mark",
    "killed before its answer",
    "killed before it saved",
    "killed before its rename",
    "killed once it saved",
]

_INSTEAD: Final = {
    "busy": Answer(503, b""),
    "error before": Answer(500, b""),
    "refused": Answer.error(400, "access_denied"),
    "resource refused": Answer.error(400, "invalid_target"),
    "client rejected": Answer.error(401, "invalid_client"),
}
"""Answers of a gateway: the server does not receive the request."""

_AFTERWARDS: Final = {"error after": Answer(502, b"<html>"), "garbled": Answer(200, b"<html>")}
"""Answers that replace the answer of the server."""

_POST: Final = SimpleNamespace(method=b"POST")


class Trouble(NamedTuple):
    """The fault of one request."""

    fault: Fault = "none"
    connecting: Happening = Happening()
    waiting: Happening = Happening()
    travels: float = 0.1


class Killed(BaseException):
    """The process is killed; the product does not catch it."""


class SimulatedNetwork(httpcore.AsyncConnectionInterface):
    """The network between one client and its server."""

    def __init__(self, clock: SimulatedClock, observer: Observer) -> None:
        self.troubles: list[Trouble] = []
        """The faults of the next requests."""
        self.fault: Fault = "none"
        """The fault of the last request."""
        self._clock = clock
        self._observer = observer

    def connect(self, *_: Any) -> "SimulatedNetwork":
        """Return the connection of one request."""
        return self

    async def aclose(self) -> None:
        """Close the connection."""

    def kill(self, fault: Fault) -> None:
        """Kill the process if this is the fault of the request."""
        if self.fault == fault:
            raise Killed

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Transfer one request and its answer, with its fault."""
        trouble = self.troubles.pop(0) if self.troubles else Trouble()
        self.fault = fault = trouble.fault
        limits = request.extensions["timeout"]
        assert isinstance(request.stream, AsyncIterable)
        fields = dict(parse_qsl(b"".join([part async for part in request.stream]).decode()))
        self._observer.connects(fields, limits["read"])
        self._wait(trouble.connecting, limits["connect"], httpcore.ConnectTimeout)
        if fault == "unreachable":
            raise httpcore.ConnectError("connection refused")
        await request.extensions["trace"]("http11.send_request_headers.started", {"request": _POST})
        self._observer.sends(fields)
        self.kill("killed after its mark")
        answer = _INSTEAD.get(fault)
        if answer is None and fault != "lost on the way there":
            self._clock.happen(Happening("passes", trouble.travels))
            answer = self._observer.arrives(fields)
        passed = trouble.connecting.seconds if trouble.connecting.what == "passes" else 0.0
        self._wait(trouble.waiting, limits["read"] - passed, httpcore.ReadTimeout)
        self.kill("killed before its answer")
        if answer is None or fault == "lost on the way back":
            raise httpcore.ReadError("reset")
        answer = _AFTERWARDS.get(fault, answer)
        if fault not in (*_AFTERWARDS, "error before"):
            self._observer.delivers(answer)
        retry_after = ("Retry-After", str(int(abs(trouble.waiting.seconds) * 100)))
        headers = [retry_after] if answer.status == 503 else []
        return httpcore.Response(answer.status, headers=headers, content=answer.body)

    def _wait(self, happening: Happening, remaining: float, late: type[httpcore.TimeoutException]) -> None:
        if happening.what != "passes":
            self._observer.disturbed = True
        elif happening.seconds >= remaining:
            self._clock.happen(Happening("passes", remaining))
            raise late("too slow")
        self._clock.happen(happening)
