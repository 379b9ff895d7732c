"""A quick token endpoint for many grants: rotates, counts, and notes when it was asked."""

import json
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

__all__ = ["Gate", "TokenServer"]


class Gate:
    """What ``hold`` may be: tells that a request has come, and keeps its answer back until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.opened.wait(60)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


class TokenServer:
    """Answers ``POST /token`` with a new pair; ``life(client_id)`` seconds. ``hold`` is called before each answer."""

    def __init__(self, life: Callable[[str], float], hold: Callable[[], object] = lambda: None) -> None:
        self.asked: defaultdict[str, list[float]] = defaultdict(list)
        """Epoch seconds at which each client asked."""
        self.reused = 0
        self._spent: set[str] = set()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                at = time.time()
                fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                client, token = fields["client_id"][0], fields["refresh_token"][0]
                with server._lock:
                    server.asked[client].append(at)
                    server.reused += token in server._spent
                    server._spent.add(token)
                hold()
                answer = {
                    "access_token": secrets.token_urlsafe(32),
                    "refresh_token": secrets.token_urlsafe(32),
                    "token_type": "Bearer",
                    "expires_in": life(client),
                }
                self._send(json.dumps(answer).encode())

            def _send(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.token_endpoint = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def grant(self, client: str, **more: Any) -> dict[str, Any]:
        """Return what ``import`` needs for a grant of ``client``."""
        return {
            "token_endpoint": self.token_endpoint,
            "client_id": client,
            "refresh_token": secrets.token_urlsafe(32),
            "server_url": "https://mcp.example/mcp",
            **more,
        }
