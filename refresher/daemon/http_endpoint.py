"""The health endpoint: ``/healthz`` and ``/readyz`` over HTTP, at the address of --listen and at a private socket."""

import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec

from refresher.config import Address, Settings, shown_address
from refresher.daemon.http_listener import Listener
from refresher.daemon.readiness import Health
from refresher.storage.health_socket import PrivateSocket

__all__ = ["HTTPEndpoint"]

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_FIRST_PAUSE: Final = 5.0
_MAX_PAUSE: Final = 60.0
_CHECK_INTERVAL: Final = 5.0
_HOST: Final = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:]*))(?::\d*)?", re.ASCII)


class HTTPEndpoint:
    """Serves in its own threads, and tries again while an address cannot be used: rotation never depends on it."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health: Final = health
        self._wanted: Settings | None = None
        self._changed: Final = threading.Event()
        self._thread: threading.Thread | None = None
        self._served: tuple[Address, Listener] | None = None
        self._failed: Address | None = None
        self._pause, self._retry_at = _FIRST_PAUSE, 0.0
        self._private: tuple[PrivateSocket, Listener] | None = None
        self._problem: tuple[Path, str] | None = None

    def use(self, settings: Settings) -> None:
        """Serve at the addresses of ``settings`` and nowhere else. Never waits."""
        self._wanted = settings
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, name="health", daemon=True)
            self._thread.start()

    def listening(self) -> bool | None:
        """Whether it serves at the address of --listen; ``None`` without one, and before the first attempt."""
        address, served = None if self._wanted is None else self._wanted.listen, self._served
        if address is None:
            return None
        if served is not None and served[0] == address:
            return True
        return False if self._failed == address else None

    def close(self) -> None:
        """Remove the private socket: the process ends."""
        self._wanted = None
        if (private := self._private) is not None:
            private[0].remove()

    def _keep(self) -> None:
        """Bring about what is wanted, again and again. A slow resolver or disk stops only this thread."""
        while (wanted := self._wanted) is not None:
            try:
                # First the socket: an address may have to be resolved, for minutes.
                self._keep_private(wanted.directories.health_socket)
                self._keep_address(wanted.listen)
            except Exception as error:  # noqa: BLE001  without these pages, a probe would end the rotations
                log.warning("health pages: internal error (%s); please report it", type(error).__name__)
            self._changed.wait(_CHECK_INTERVAL)
            self._changed.clear()

    def _keep_address(self, address: Address | None) -> None:
        served = self._served
        if served is not None and not served[1].is_alive():
            served[1].close()
            self._served = served = None
        if served is not None and served[0] != address and (address is None or served[0][1] == address[1]):
            # A former 0.0.0.0 would occupy the same port of 127.0.0.1.
            self._served = None
            served[1].close()
        if address is None or (served is not None and served[0] == address):
            self._failed = None
            return
        if self._failed == address and time.monotonic() < self._retry_at:
            return
        try:
            listening = _listening(address)
            listener = Listener(listening, self._answer, "health-http")
        except (OSError, RuntimeError) as error:  # also without a thread
            if self._failed != address:
                self._failed, self._pause = address, _FIRST_PAUSE
                log.warning(
                    "cannot listen on %s: %s; refresher rotates without these health pages, and tries again: "
                    "stop the other program, or change --listen",
                    shown_address(address),
                    _reason(error),
                )
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _MAX_PAUSE)
            return
        previous, self._failed = self._served, None
        url = f"http://{shown_address((address[0], listening.getsockname()[1]))}"
        self._served = address, listener
        log.info("serving %s/healthz and %s/readyz", url, url)
        if previous is not None:
            previous[1].close()

    def _keep_private(self, path: Path) -> None:
        if self._private is not None:
            private, listener = self._private
            if private.path == path and private.in_place() and listener.is_alive():
                return
            self._private = None
            listener.close()
            private.remove()
        try:
            private = PrivateSocket(path)
            self._private = private, Listener(private.socket, self._answer, "health-private")
        except FileExistsError:
            return  # another daemon serves there; when it ends, this one does
        except (OSError, RuntimeError) as error:
            if self._problem != (problem := (path, _reason(error))):
                self._problem = problem
                log.info("cannot listen on %s: %s; 'refresher health' uses the address of --listen instead", *problem)
            return
        self._problem = None

    def _answer(self, request: bytes) -> bytes:
        wanted = self._wanted
        return _Handler(request, self._health(), _names(wanted)).wfile.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request, from one buffer to another."""

    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    wfile: BytesIO

    def __init__(self, request: bytes, health: Health, hosts: frozenset[str]) -> None:  # not super(): it needs a socket
        self.rfile, self.wfile = BytesIO(request), BytesIO()
        self.health, self.hosts = health, hosts
        self.handle_one_request()

    def do_GET(self) -> None:
        """Send the health as JSON, with status 200 if the daemon is live or ready, else 503."""
        if not all(_is_served(host, self.hosts) for host in self.headers.get_all("Host", [])):
            # Else a web page could read the answer, with a name of its own that leads to this address.
            self.send_error(421, "Misdirected Request: use an IP address, or a name of --listen-host")
            return
        healthy = {"/healthz": self.health.live, "/readyz": self.health.ready}.get(self.path.partition("?")[0])
        if healthy is None:
            self.send_error(404, "Not found: use /healthz or /readyz")
            return
        body = msgspec.json.encode(self.health) + b"\n"
        self.send_response(200 if healthy else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  the name is http.server's

    def version_string(self) -> str:
        """Do not reveal versions."""
        return "refresher"

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes come every few seconds."""


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens at ``address``. Raises ``OSError``."""
    listening = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()


def _names(settings: Settings | None) -> frozenset[str]:
    """Return the names that a request may give as its host."""
    if settings is None:
        return frozenset({"localhost"})
    listen = () if settings.listen is None else (settings.listen[0].lower(),)
    return frozenset({"localhost", *listen, *settings.listen_hosts})


def _is_served(host: str, names: frozenset[str]) -> bool:
    """Whether a ``Host`` header is absent or empty, an IP address, or one of ``names``."""
    host = host.strip()
    match = _HOST.fullmatch(host)
    name = host if match is None else match["six"] or match["name"] or ""
    if name.lower().removesuffix(".") in ("", *names):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
