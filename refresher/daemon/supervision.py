"""Reports to the supervisors of the daemon: health probes over HTTP, and systemd (sd_notify(3))."""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from refresher.config import Settings
from refresher.daemon.gateway_process import GatewayProcess
from refresher.daemon.http_endpoint import HTTPEndpoint
from refresher.daemon.readiness import Health, Readiness
from refresher.observers import history
from refresher.operations.events import Event
from refresher.storage import last_run
from refresher.storage.directories import Directories

__all__ = ["Supervision"]

_HEARTBEAT_INTERVAL: Final = 5.0
_NOTE_INTERVAL: Final = last_run.RUN_LIMIT / 2
_MAX_SILENCE: Final = 60.0
_STOP_EXTENSION: Final = 10.0
_LONGEST_HISTORY: Final = 1000
_MICRO: Final = 1_000_000


class Supervision:
    """Reports the state of the daemon to systemd and to health probes; other threads call only ``health``."""

    def __init__(self) -> None:
        self.readiness: Final = Readiness()
        # Removed from the environment, so that no child process answers for this one.
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._systemd = address if address.startswith(("/", "@")) else None
        self._has_watchdog = self._systemd is not None and microseconds.isdecimal() and pid in ("", str(os.getpid()))
        self.endpoint: Final = HTTPEndpoint(self.health)
        self.endpoint.history = self._past
        self.gateway: Final = GatewayProcess()
        self._heartbeat_at = float("-inf")
        self._ready = False
        self._directories: Directories | None = None
        self._noted_at = float("-inf")
        # Three heartbeats within the watchdog's time: one that comes late does not matter.
        watchdog = int(microseconds) / _MICRO if self._has_watchdog else 0.0
        self.heartbeat_interval: Final = min(_HEARTBEAT_INTERVAL, (watchdog or float("inf")) / 3)
        """Seconds."""

    def use(self, settings: Settings) -> None:
        """Report for the directories and at the addresses of ``settings``."""
        self._directories, self._noted_at = settings.directories, float("-inf")
        self.endpoint.use(settings)
        self.gateway.use(settings)

    def health(self) -> Health:
        """Return the health now."""
        live = time.monotonic() - self._heartbeat_at < _MAX_SILENCE
        return self.readiness.health(live=live, listening=self.endpoint.listening())

    def _past(self, name: str, since: float) -> Sequence[Event]:
        """Return the newest events of ``name`` since a time. Raises ``StorageError``."""
        directories = self._directories
        return () if directories is None else history.read(directories, (name,), since)[-_LONGEST_HISTORY:]

    def heartbeat(self) -> None:
        """Report that the daemon works; the first time after a start or a reload, that it is ready."""
        self._heartbeat_at = now = time.monotonic()
        self.endpoint.begin()
        if self._directories is not None and now - self._noted_at >= _NOTE_INTERVAL:
            self._noted_at = now
            last_run.note(self._directories, last_run.RUN_LIMIT)
        status = f"STATUS={self.health().summary()}"
        if not self._ready:
            self._ready = True
            self._notify("READY=1", status)
        elif self._has_watchdog:
            self._notify("WATCHDOG=1", status)
        else:
            self._notify(status)

    def reloading(self) -> None:
        """Report that the daemon reads its configuration; the next heartbeat reports the end."""
        # Type=notify-reload requires the second field.
        self._notify("RELOADING=1", f"MONOTONIC_USEC={int(time.monotonic() * _MICRO)}")
        self._ready = False

    def stopping(self, status: str) -> None:
        """Report that the daemon starts no more rotations."""
        self._ready = True
        self.gateway.stop()
        self._notify("STOPPING=1", f"STATUS={status}")

    def extend_stop(self) -> None:
        """Ask for more time to stop: a kill now could lose a token."""
        self._heartbeat_at = time.monotonic()
        self._notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={int(_STOP_EXTENSION * _MICRO)}")

    def _notify(self, *lines: str) -> None:
        """Send one datagram to systemd, if it is there. Never raises, never waits."""
        if self._systemd is None:
            return
        # A name that begins with @ is an abstract one, which begins with a zero byte on the wire.
        address = f"\0{self._systemd[1:]}" if self._systemd.startswith("@") else self._systemd
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
