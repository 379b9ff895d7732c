"""The redirect address of a login: an HTTP server on loopback, while the login waits (RFC 8252)."""

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import urlsplit

from refresher.common.errors import ConfigError
from refresher.login import pages

__all__ = ["Loopback"]

_CALLBACK: Final = "/callback"
_PAGE_TIMEOUT: Final = 90.0
"""Seconds for which the browser waits for its page, longer than the rest of the login takes."""
_IDLE_TIMEOUT: Final = 10.0
_DELIVERY_TIMEOUT: Final = 2.0


class Loopback(ThreadingHTTPServer):
    """Receives the redirect, and answers with the page of ``accept`` or, later, of ``show``."""

    # Browsers open connections and send nothing. The end of the login does not wait for these.
    daemon_threads = True
    block_on_close = False

    def __init__(self, redirect_uri: str | None = None) -> None:
        """Listen at ``redirect_uri``, or at a free port. Raises ``ConfigError`` if the port cannot be used."""
        parts = urlsplit(redirect_uri or f"http://127.0.0.1:0{_CALLBACK}")
        # The name localhost would have to be resolved, and browsers try both addresses of it.
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname or ""
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, parts.port or 0), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host} port {parts.port}: {error.strerror}; choose another --port"
            ) from None
        self.path = parts.path or "/"
        self.page: str | None = None
        self.shown, self.accepted, self.delivered = threading.Event(), threading.Event(), threading.Event()
        self.accept: Callable[[str], str | None] = lambda _: pages.foreign_redirect()
        """Called with the query of each redirect, in any thread; returns a page, or ``None`` to wait for ``show``."""
        self.redirect_uri = redirect_uri or f"http://127.0.0.1:{self.server_port}{_CALLBACK}"
        # Other host names are refused, against DNS rebinding by a web page. A browser omits the port of HTTP.
        self.hosts = {urlsplit(self.redirect_uri).netloc.lower(), f"127.0.0.1:{self.server_port}"}
        self.hosts |= {known.removesuffix(":80") for known in self.hosts}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True, name="loopback").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show(pages.failed("the login was interrupted"))
        if self.accepted.is_set():
            self.delivered.wait(_DELIVERY_TIMEOUT)
        self.shutdown()
        self.server_close()

    def show(self, page: str) -> None:
        """Send the page to the browser that waits; only the first call counts."""
        if not self.shown.is_set():
            self.page = page
            self.shown.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore an error of a connection: the login does not fail if a browser closes one."""


class _Handler(BaseHTTPRequestHandler):
    server: Loopback
    timeout = _IDLE_TIMEOUT

    def do_GET(self) -> None:
        loopback, parts = self.server, urlsplit(self.path)
        if parts.path != loopback.path or self.headers.get("host", "").lower() not in loopback.hosts:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        page = loopback.accept(parts.query)
        if is_accepted := page is None:
            loopback.accepted.set()
            loopback.shown.wait(_PAGE_TIMEOUT)
            page = loopback.page or pages.failed("the login did not end in time")
        body = page.encode()
        self.send_response(HTTPStatus.OK if is_accepted else HTTPStatus.BAD_REQUEST)
        for key, value in (pages.HEADERS | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        if is_accepted:
            loopback.delivered.set()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        pass  # its log lines would contain the code
