"""An hour of a session behind a load balancer that cuts idle streams, in seconds.

The server notifies once a minute. The load balancer cuts each stream 60 to 125 seconds after it was opened: as often as
load balancers cut idle streams. Cuts and notifications come in the order of a simulated clock, each as soon as the one
before has been seen; the pauses of the client are 20 times shorter than usual, by the clock of the event loop.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from shim.mcp import ReconnectingClient
from tests.conftest import need
from tests.support.balancer import Balancer
from tests.support.counterpart import Counterpart, missing
from tests.support.fast_loop import TIMES, run_fast
from tests.support.mirror import Mirror
from tests.support.published import Published

MINUTES: Final = 60
AT_ONCE: Final = 3.0
"""A notification so soon after a cut, in seconds, comes before the client is back."""


class Session:
    """A client behind a load balancer, for a simulated hour."""

    def __init__(self, server: Counterpart, balancer: Balancer, published: Published, mode: str) -> None:
        self.mirror = Mirror(listens=mode == "auto")
        self.cuts = 0
        self.down = 0
        """The number of notifications before the client was back."""
        self._server = server
        self._balancer = balancer
        options: Any = {"mode": mode, "message_handler": self.mirror.on_message}
        self._client = ReconnectingClient(balancer.url, published.source(), **options)
        self._random = random.Random(7)

    async def run(self) -> None:
        """Notify once a minute; the agent must have the new version before the next minute."""
        async with self._client, anyio.create_task_group() as tasks:
            tasks.start_soon(self.mirror.run, self._client)
            await until(lambda: self._balancer.streams == 1, "the stream is open")
            await until(lambda: not self.mirror.is_fetching, "the agent is current")
            cut_at = self._until_the_next_cut()
            for minute in range(1, MINUTES + 1):
                now = 60.0 * minute
                while cut_at < now:
                    await self._cut(back=now - cut_at > AT_ONCE)
                    self.down += now - cut_at <= AT_ONCE
                    cut_at += self._until_the_next_cut()
                await anyio.to_thread.run_sync(self._server.notify)
                self._balancer.decide = lambda _: "pass"
                await until(lambda: self.mirror.version == self._server.version, "the agent is current")
            await until(lambda: self._client.state == "connected", "the state is right")
            tasks.cancel_scope.cancel()

    def _until_the_next_cut(self) -> float:
        return self._random.uniform(60, 125)

    async def _cut(self, *, back: bool) -> None:
        """Cut the stream; with ``back``, wait until the client has opened it again, else keep it from that."""
        await until(lambda: self._balancer.streams == self.cuts + 1, "the stream is open")
        if not back:
            self._balancer.decide = lambda request: "drop" if request.is_stream else "pass"
        assert self._balancer.cut_streams() == 1
        self.cuts += 1
        if back:
            await until(lambda: self.mirror.events["connected"] == self.cuts, "the gap is announced")
            await until(lambda: not self.mirror.is_fetching, "the agent is current again")


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds, by the fast clock."""
    with anyio.move_on_after(90 * TIMES) as scope:
        while not condition():
            await anyio.sleep(0.1)
    assert not scope.cancelled_caught, f"after 90 s still not true: {what}"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("python", "legacy"), ("fastmcp", "legacy"), ("typescript", "legacy"), ("python", "auto")],
    ids=["python 2025", "fastmcp 2025", "typescript 2025", "python 2026"],
)
def test_an_hour_of_idle_cuts_lose_nothing_silently(tmp_path: Path, kind: str, mode: str) -> None:
    """If it failed, an agent behind a load balancer would miss changes, and nothing would say so."""
    need(missing(kind))
    server = Counterpart(kind, tmp_path / "server")
    server.accept("access-token-1")
    server.start()

    async def an_hour() -> Session:
        async with Balancer(server.port) as balancer:
            published = Published(tmp_path / "published", balancer.origin)
            published.put(1)
            session = Session(server, balancer, published, mode)
            await session.run()
            return session

    try:
        session = run_fast(an_hour())
    finally:
        server.stop()
    assert server.version == MINUTES
    assert 25 <= session.cuts <= 55
    # Each gap was announced, and nothing else was.
    assert session.mirror.events["reconnecting"] == session.cuts
    assert session.mirror.errors == {}
    # With listen, the announcements of the gaps are heard too.
    assert session.mirror.heard >= MINUTES - session.down + (session.cuts if mode == "auto" else 0)
    print(f"{session.cuts} cuts, {session.down} notifications during a gap, {session.mirror.heard} heard")
