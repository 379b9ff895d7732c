"""Two pages over HTTP, for whoever watches over a daemon: ``/healthz`` and ``/readyz``."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec

from refresher.addresses import Address, shown
from refresher.common.errors import ConfigError
from refresher.daemon.health import Health

__all__ = ["Listener"]

_LONGEST: Final = 2.0
_AT_ONCE: Final = 32


class Listener:
    """Answers at one address, in threads of its own, until it is closed."""

    def __init__(self, address: Address, health: Callable[[], Health]) -> None:
        """Begin to answer. Raises ``ConfigError`` where that address cannot be had."""
        try:
            self._server = _Server(address, health)
        except OSError as error:
            raise ConfigError(f"cannot listen on {shown(address)}: {error.strerror or error}") from None
        self.address: Final = address
        self.url: Final = f"http://{shown((address[0], self._server.server_address[1]))}"
        threading.Thread(target=self._server.serve_forever, name="listener", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: Address, health: Callable[[], Health]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.health = health
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Page)

    def server_bind(self) -> None:
        # Not HTTPServer's own, which asks the name service who we are.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        # Whoever opens connections without end shall not cost a thread for each.
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # One deadline over all of it: a time-out for each read is outlived by one byte a second.
        ends = threading.Timer(_LONGEST, _cut, (request,))
        ends.daemon = True
        ends.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            ends.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no fault of ours."""


class _Page(BaseHTTPRequestHandler):
    server: _Server
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """Answer with how it is: 200 where it is well in the sense of that page, else 503."""
        health = self.server.health()
        match self.path.partition("?")[0]:
            case "/healthz":
                well = health.live
            case "/readyz":
                well = health.ready
            case _:
                self.send_error(404, "there are /healthz and /readyz")
                return
        body = msgspec.json.encode(health) + b"\n"
        self.send_response(200 if well else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  likewise

    def version_string(self) -> str:
        """Name no versions."""
        return "refresher"

    def log_message(self, *_: Any) -> None:
        """Say nothing: probes come every few seconds."""


def _cut(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
