"""An API on loopback that requires tokens: HTTP/1.1 with persistent connections, a thread for each."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from tests.support.listener import Listening

__all__ = ["API", "Seen"]


class Seen(NamedTuple):
    """A request that the API received."""

    path: str
    token: str | None
    status: int
    headers: dict[str, str]


class API(Listening):
    """Answers 200 if ``accepts(token, headers)``, else 401; echoes bodies; ``/redirect?URL`` redirects."""

    def __init__(self, accepts: Callable[[str | None, dict[str, str]], bool], challenge: str | None = "Bearer") -> None:
        self.seen: list[Seen] = []
        self.before_answer: Callable[[], None] = lambda: None
        self.first_chunk = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Without this, the small writes of http.server wait for delayed acknowledgements.
            wbufsize = -1
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                body = self._body()
                headers = {name.lower(): value for name, value in self.headers.items()}
                scheme, _, credentials = headers.get("authorization", "").partition(" ")
                token = credentials if scheme == "Bearer" else None
                if self.path.startswith("/redirect?"):
                    self._send(307, b"", {"Location": self.path.partition("?")[2]})
                    return
                api.before_answer()
                good = accepts(token, headers)
                api.seen.append(Seen(self.path, token, 200 if good else 401, headers))
                extra = {} if good or challenge is None else {"WWW-Authenticate": challenge}
                self._send(200 if good else 401, json.dumps({"body": body.decode("latin-1")}).encode(), extra)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        api.first_chunk.set()
                        self.rfile.readline()
                    self.rfile.readline()
                    return body
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            do_GET = do_POST = _serve  # noqa: N815  http.server's names

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        self.origin = self.url

    def statuses(self) -> list[int]:
        """Return the status codes of the answers, in order."""
        return [seen.status for seen in self.seen]
