"""What a program sees of a reconnecting client: its state and its events; and how tasks wait for a change."""

from collections.abc import Callable
from typing import Literal

import anyio

from shim.mcp._client_events import EventBroadcast

__all__ = ["State", "Status"]

State = Literal["connecting", "connected", "reconnecting", "parked", "gave_up", "closed"]
"""``parked``: there is no token to send, so nothing is sent. ``gave_up``: only occasional attempts are made."""


class Status:
    """The state and the events of one client."""

    def __init__(self) -> None:
        self.state: State = "connecting"
        self.events = EventBroadcast()
        self._has_session = False
        self._broken_streams: dict[object, str] = {}
        """The streams of notifications that are down, and why."""
        self._changed = anyio.Event()

    def set_state(self, state: State) -> None:
        """Change the state to one without a session; ``closed`` is final."""
        self._has_session = False
        if self.state != "closed":
            self.state = state
        self.notify()

    def connected(self, server: str) -> None:
        """Record that there is a session with ``server``."""
        self.set_state("connected")
        self._has_session = self.state == "connected"
        self.events.emit("connected", f"to {server}")
        self._show_streams()

    def stream_changed(self, stream: object, broken: str | None) -> None:
        """Record why no notifications come from ``stream``; ``None``: they come, or nobody needs it any more."""
        if broken is None:
            self._broken_streams.pop(stream, None)
        else:
            self._broken_streams[stream] = broken
        self._show_streams()

    def _show_streams(self) -> None:
        if not self._has_session:
            return
        if self._broken_streams and self.state == "connected":
            self.state = "reconnecting"
            reason = next(iter(self._broken_streams.values()))
            self.events.emit("reconnecting", f"notifications may be lost: {reason}")
        elif not self._broken_streams and self.state == "reconnecting":
            self.state = "connected"
            self.events.emit("connected", "no stream of notifications is down any more")
        self.notify()

    async def wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait for ``condition``, until ``deadline``."""
        with anyio.CancelScope(deadline=deadline):
            while not condition():
                await self.change()

    async def change(self) -> None:
        """Wait for a change."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all tasks that wait for a change."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
