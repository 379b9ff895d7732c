"""What systemd is told by a service of ``Type=notify`` (sd_notify(3)); nothing where nobody listens."""

import os
import socket
import time
from contextlib import suppress
from typing import Final

__all__ = ["Notify"]

_MICRO: Final = 1_000_000


class Notify:
    """Sends to ``NOTIFY_SOCKET``, which is taken out of the environment. Never raises, and never waits."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self.watchdog: float | None = None
        """Seconds within which ``alive`` must be told, where anybody waits for it."""
        self._address = address if address.startswith(("/", "@")) else None
        if self._address is not None and microseconds.isdecimal() and pid in ("", str(os.getpid())):
            self.watchdog = int(microseconds) / _MICRO

    def ready(self, status: str) -> None:
        """It watches; or it does again, after a reload."""
        self._tell("READY=1", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """The loops have turned once."""
        self._tell(*(() if self.watchdog is None else ("WATCHDOG=1",)), f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is read again."""
        # The second field is what Type=notify-reload asks for.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(time.monotonic() * _MICRO)}")

    def stopping(self, status: str) -> None:
        """Nothing new is begun."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def extend(self, seconds: float) -> None:
        """Alive, and a stop takes longer than anybody was told: not to be killed for so long."""
        self._tell("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={int(seconds * _MICRO)}")

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        # A name that begins with @ is of the abstract kind, which is written with a zero byte.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
