"""A server of the page with scripted grants, for states that take days or 10,000 grants."""

import json
import queue
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import refresher.daemon
from tests.support.listener import Listening

__all__ = ["PageServer", "Row", "error", "event", "row"]

Row = dict[str, Any]
_FILES: Final = Path(refresher.daemon.__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_PART: Final = 500


def row(name: str, at: float, **changes: Any) -> Row:
    """Return what ``/stream`` sends of a healthy grant."""
    return {
        "name": name,
        "state": "active",
        "generation": 12,
        "issued_at": at - 1200,
        "expires_at": at + 2400,
        "next_rotation_at": at + 1500,
        "last_rotation_at": at - 1200,
        "failures": 0,
        "error": None,
        "issuer": f"https://auth.{name}.example",
        "resource": f"https://mcp.{name}.example/mcp",
        "scope": "read write offline_access",
        "origins": [f"https://mcp.{name}.example"],
        "refresh_token_expires_at": None,
        "login_ends_at": None,
        "account": {"issuer": f"https://auth.{name}.example", "subject": "248289761001", "label": "ann@example.com"},
        "overdue": False,
        "ends": [],
        "advice": None,
        **changes,
    }


def error(code: str, description: str, at: float, retry_at: float | None = None) -> dict[str, Any]:
    """Return the last error of a grant."""
    return {"code": code, "description": description, "at": at, "retry_at": retry_at}


def event(kind: str, at: float, generation: int = 12, **changes: Any) -> dict[str, Any]:
    """Return an event of a history."""
    keys = dict.fromkeys(("name", "outcome", "state_before", "state", "detail"))
    return {"at": at, "kind": kind, "generation": generation, **keys, "demanded": False, **changes}


class PageServer(Listening):
    """Serves the page of refresher; ``send`` changes grants. ``clock`` is added to the time of this machine."""

    def __init__(self, rows: Sequence[Row] = (), *, clock: float = 0.0, port: int = 0) -> None:
        self.rows = {row["name"]: row for row in rows}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.refusal: tuple[int, str] | None = None
        """The status and the sentence with which streams are refused."""
        self.answers = True
        """Whether it answers when the page asks for its health."""
        self.clock = clock
        self._streams: list[queue.SimpleQueue[str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path == "/stream":
                    self._stream()
                elif url.path == "/history":
                    events = server.history.get(parse_qs(url.query)["name"][0], [])
                    self._answer(200, "application/json", json.dumps({"events": events}).encode())
                elif url.path == "/healthz":
                    if server.answers:
                        self._answer(200, "application/json", b"{}")
                elif (file := _FILES / (url.path[1:] or "index.html")).is_file():
                    self._answer(200, _TYPES[file.suffix], file.read_bytes())
                else:
                    self._answer(404, "text/plain", b"")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self._head(status, kind)
                self.wfile.write(body)

            def _head(self, status: int, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", _POLICY)
                self.send_header("Cache-Control", "no-store")
                self.end_headers()

            def _stream(self) -> None:
                if server.refusal is not None:
                    self._answer(server.refusal[0], "text/plain", server.refusal[1].encode())
                    return
                changes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
                server._streams.append(changes)
                self._head(200, "text/event-stream")
                rows = [*server.rows.values()]
                for first in range(0, max(1, len(rows)), _PART):
                    part = rows[first : first + _PART]
                    self.wfile.write(server._message("change" if first else "snapshot", part).encode())
                while (change := changes.get()) is not None:
                    self.wfile.write(change.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler, port)

    @property
    def now(self) -> float:
        """The time of this server."""
        return time.time() + self.clock

    @property
    def port(self) -> int:
        """The port, for a server that comes back."""
        return int(self._server.server_address[1])

    def send(self, *rows: Row, removed: Sequence[str] = ()) -> None:
        """Change or remove grants."""
        self.rows |= {row["name"]: row for row in rows}
        for name in removed:
            del self.rows[name]
        change = self._message("change", rows, removed)
        for stream in self._streams:
            stream.put(change)

    def cut(self) -> None:
        """End all streams."""
        while self._streams:
            self._streams.pop().put(None)

    def __exit__(self, *of: Any) -> None:
        self.cut()
        super().__exit__(*of)

    def _message(self, kind: str, rows: Sequence[Row], removed: Sequence[str] = ()) -> str:
        data: dict[str, Any] = {"now": self.now, "grants": [*rows]}
        data |= {"overdue": False} if kind == "snapshot" else {"removed": [*removed]}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
