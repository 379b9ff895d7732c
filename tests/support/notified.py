"""The socket of systemd for a service with Type=notify."""

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Notified"]


class Notified:
    """Receives notifications of a service started with ``environment``; ``watchdog``: the seconds of ``WatchdogSec=``."""

    def __init__(self, place: Path | str, watchdog: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(place)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self.environment = {"NOTIFY_SOCKET": name}
        if watchdog is not None:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))

    def hear(self, longest: float = 90.0) -> dict[str, str]:
        """Return the next message; empty if none arrives within ``longest`` seconds."""
        self._socket.settimeout(longest)
        try:
            words = self._socket.recv(65536).decode()
        except TimeoutError:
            return {}
        return dict(line.split("=", 1) for line in words.splitlines())

    def until(self, key: str, value: str | None = None, longest: float = 90.0) -> list[dict[str, str]]:
        """Return the messages up to the one that has ``key``, with this value if it is given."""
        ends = time.monotonic() + longest
        messages: list[dict[str, str]] = []
        while time.monotonic() < ends:
            messages.append(self.hear(ends - time.monotonic()))
            if key in messages[-1] and value in (None, messages[-1][key]):
                return messages
        raise AssertionError(f"no message with {key}={value}: {messages[-5:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
