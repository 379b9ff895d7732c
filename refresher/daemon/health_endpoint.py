"""The health endpoint: ``/healthz`` and ``/readyz`` over HTTP."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Final

import msgspec

from refresher.common.errors import ConfigError
from refresher.config import Address, shown_address
from refresher.daemon.readiness import Health

__all__ = ["HealthEndpoint"]

_TIMEOUT: Final = 2.0
_MAX_CONNECTIONS: Final = 32


class HealthEndpoint(ThreadingTCPServer):
    """Serves at one address, in its own threads, until it is closed."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: Address, health: Callable[[], Health]) -> None:
        """Start serving. Raises ``ConfigError``."""
        self.address: Final = address
        self.health: Final = health
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot listen on {shown_address(address)}: {reason}; change --listen") from None
        self.url: Final = f"http://{shown_address((address[0], self.server_address[1]))}"
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, up to a limit: a client may open endless connections."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a request within one deadline: a client that sends a byte a second never reaches a read timeout."""
        deadline = threading.Timer(_TIMEOUT, _shut_down, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client may disconnect at any time."""


class _Handler(BaseHTTPRequestHandler):
    server: HealthEndpoint
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """Send the health as JSON, with status 200 if the daemon is live or ready, else 503."""
        health = self.server.health()
        healthy = {"/healthz": health.live, "/readyz": health.ready}.get(self.path.partition("?")[0])
        if healthy is None:
            self.send_error(404, "Not found: use /healthz or /readyz")
            return
        body = msgspec.json.encode(health) + b"\n"
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


def _shut_down(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
