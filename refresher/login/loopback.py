"""The redirect address of a login: a listener on this machine, while the login waits (RFC 8252)."""

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
"""Seconds for which the browser waits for its page: longer than the rest of the login takes."""
_IDLE: Final = 10.0
_HTTP: Final = 80
_TO_DELIVER: Final = 2.0


class Loopback:
    """Listens for the redirect, and answers with the page that ``accept`` or, later, ``show`` gives."""

    def __init__(self, redirect_uri: str | None = None) -> None:
        """Listen at ``redirect_uri``, or at a free port. Raises ``ConfigError`` where the port is in use."""
        parts = urlsplit(redirect_uri or f"http://127.0.0.1:0{_CALLBACK}")
        # The name would have to be resolved, and the browser tries both addresses of this machine.
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname or ""
        self._path = parts.path or "/"
        self._page: str | None = None
        self._shown, self._accepted, self._delivered = threading.Event(), threading.Event(), threading.Event()
        self.accept: Callable[[str], str | None] = lambda _: pages.foreign_redirect()
        """Called with the query of each redirect, in any thread; returns a page, or ``None`` for that of ``show``."""
        try:
            self._server = _Server((host, parts.port or 0), self._handler())
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host} port {parts.port}: {error.strerror}; choose another --port"
            ) from None
        self.redirect_uri = redirect_uri or f"http://127.0.0.1:{self._server.server_address[1]}{_CALLBACK}"
        # Against DNS rebinding: a web page whose name resolves to this machine.
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
        self.show(pages.failed("the login was interrupted"))
        if self._accepted.is_set():
            self._delivered.wait(_TO_DELIVER)
        self._server.shutdown()
        self._server.server_close()

    def show(self, page: str) -> None:
        """Give the waiting browser its page; the first call counts."""
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
                page = loopback.accept(parts.query)
                if mine := page is None:
                    loopback._accepted.set()
                    loopback._shown.wait(_UNANSWERED)
                    page = loopback._page or pages.failed("the login did not end in time")
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
                pass  # the lines of http.server would hold the code

        return Handler


class _Server(ThreadingHTTPServer):
    # Browsers open connections without sending anything: the end of the login does not wait for them.
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a browser that closes its connection is no error of the login
