"""The end of a login in the browser: a listener on this machine alone, for as long as the login waits (RFC 8252)."""

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from refresher.common.errors import ConfigError
from refresher.login import pages

__all__ = ["Loopback"]

_CALLBACK: Final = "/callback"
_UNANSWERED: Final = 90.0
"""Seconds that a browser waits for its page: longer than all that follows the redirect."""
_IDLE: Final = 10.0
_HTTP: Final = 80
_TO_DELIVER: Final = 2.0


class Loopback:
    """Hears the redirect; each one is answered with the page that ``take`` or, later, ``show`` gives for it."""

    def __init__(self, redirect_uri: str | None = None) -> None:
        """Listen at ``redirect_uri``, else at a free port. Raises ``ConfigError`` where the port is taken."""
        parts = urlsplit(redirect_uri or f"http://127.0.0.1:0{_CALLBACK}")
        # A name would have to be resolved; the browser finds its way to either address of this machine.
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname or ""
        self._path = parts.path or "/"
        self._page: str | None = None
        self._shown, self._taken, self._delivered = threading.Event(), threading.Event(), threading.Event()
        self.take: Callable[[str], str | None] = lambda _: pages.not_ours()
        """Is asked with the query of each redirect, in any thread: a page, or ``None`` for that of ``show``."""
        try:
            self._server = _Server((host, parts.port or 0), self._handler())
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {host} port {parts.port}: {error.strerror}; end what uses it, or choose a --port"
            ) from None
        self.redirect_uri = redirect_uri or f"http://127.0.0.1:{self._server.server_address[1]}{_CALLBACK}"
        # Against a page that has this machine's address resolved to a name of its own (DNS rebinding).
        port = self._server.server_address[1]
        self._hosts = {urlsplit(self.redirect_uri).netloc.lower(), f"127.0.0.1:{port}"}
        if port == _HTTP:
            self._hosts |= {known.removesuffix(f":{_HTTP}") for known in self._hosts}
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="loopback")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show(pages.failed("the login was given up"))
        if self._taken.is_set():
            self._delivered.wait(_TO_DELIVER)
        self._server.shutdown()
        self._server.server_close()

    def show(self, page: str) -> None:
        """Give the browser that waits its page; the first one counts."""
        if not self._shown.is_set():
            self._page = page
            self._shown.set()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _IDLE

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path != loopback._path or self.headers.get("host", "").lower() not in loopback._hosts:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                page = loopback.take(parts.query)
                if mine := page is None:
                    loopback._taken.set()
                    loopback._shown.wait(_UNANSWERED)
                    page = loopback._page or pages.failed("nobody knows what has become of it")
                body = page.encode()
                self.send_response(HTTPStatus.OK if mine else HTTPStatus.BAD_REQUEST)
                for key, value in pages.HEADERS.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if mine:
                    loopback._delivered.set()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
                pass  # its lines would hold the code

        return Handler


class _Server(ThreadingHTTPServer):
    # Browsers open connections on which they never say anything: nothing waits for those.
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a browser that hangs up is no error of the login's
