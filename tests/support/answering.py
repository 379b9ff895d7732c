"""A server with scripted answers, for answers that no normal server gives."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from tests.support.listener import Listening

__all__ = ["Answer", "Answering"]


class Answer(NamedTuple):
    """An answer. ``status`` ``None`` closes the connection; a ``body`` that is not a string is sent as JSON."""

    status: int | None
    body: Any = ""
    headers: tuple[tuple[str, str], ...] = ()


class Answering(Listening):
    """Sends ``answers`` by path, and 404 for other paths. Several answers of a path are sent in order; the last one repeats."""

    def __init__(self, **answers: Answer) -> None:
        self.answers: dict[str, list[Answer]] = {path: [answer] for path, answer in answers.items()}
        self.seen: list[str] = []
        """Method and path of each request."""
        self.bodies: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
                server.seen.append(f"{self.command} {path}")
                left = server.answers.get(path, [Answer(404)])
                answer = left.pop(0) if len(left) > 1 else left[0]
                if answer.status is None:
                    return
                body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
                self.send_response(answer.status)
                for key, value in (*answer.headers, ("Content-Length", str(len(body)))):
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
