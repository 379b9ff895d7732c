"""A fast token endpoint for many grants: it rotates, counts, and records the time of each request."""

import json
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

from tests.support.listener import Listening

__all__ = ["Gate", "TokenServer"]


class Gate:
    """A ``hold`` of a token server: ``reached`` is set when a request arrives; its answer waits for ``opened``."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.opened.wait(90)


class TokenServer(Listening):
    """Answers ``POST /token`` with new tokens for ``life(client_id)`` seconds. It calls ``hold`` before each answer.

    ``grace``: it accepts a spent refresh token again for so many seconds; a later one ends the logins and access tokens
    of the client. With ``None``, it accepts each refresh token for ever.

    ``refresh_life``: the seconds for which a refresh token that is issued to a client now can be used. They are announced
    as the member ``announced`` returns for that client, and honoured for ``patience`` seconds longer, so that a
    busy machine loses no login.
    """

    def __init__(
        self,
        life: Callable[[str], float],
        hold: Callable[[], object] = lambda: None,
        *,
        grace: float | None = None,
        refresh_life: Callable[[str], float] | None = None,
        announced: Callable[[str], str] = lambda _: "refresh_expires_in",
        patience: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self.asked: defaultdict[str, list[float]] = defaultdict(list)
        """The epoch seconds of the requests of each client."""
        self.presented: defaultdict[str, list[str]] = defaultdict(list)
        """The refresh tokens that each client sent; an empty one for client credentials."""
        self.reused = 0
        self._life = life
        self._grace = grace
        self._refresh_life = refresh_life
        self._announced = announced
        self._patience = patience
        self._ends: dict[str, float] = {}
        """When each refresh token ends (monotonic seconds), if they end."""
        self._spent: dict[str, float] = {}
        """When each refresh token was first used (monotonic seconds)."""
        self._logins: dict[str, str] = {}
        """The client of each refresh token of a login that has not ended."""
        self._access: dict[str, tuple[str, float]] = {}
        """The client of each access token, and when it ends (monotonic seconds)."""
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                at = time.time()
                if self.headers["Content-Length"] is None:
                    return  # truncated
                fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                if "client_id" not in fields:
                    return  # truncated
                client, token = fields["client_id"][0], fields.get("refresh_token", [""])[0]
                with server._lock:
                    server.asked[client].append(at)
                    server.presented[client].append(token)
                    answer = server._answer(client, token)
                hold()
                self._send(200 if "access_token" in answer else 400, json.dumps(answer).encode())

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        self.token_endpoint = f"{self.url}/token"

    def grant(self, client: str, **more: Any) -> dict[str, Any]:
        """Return the fields of an import file for a grant of ``client``."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._logins[token] = client
            ending = self._ending(client, token)
        return {
            "token_endpoint": self.token_endpoint,
            "client_id": client,
            "refresh_token": token,
            "server_url": "https://mcp.example/mcp",
            **ending,
            **more,
        }

    def tokens(self) -> set[str]:
        """Return every token that a client has had."""
        with self._lock:
            return {
                *self._logins,
                *self._access,
                *(token for sent in self.presented.values() for token in sent if token),
            }

    def live(self, client: str) -> set[str]:
        """Return the refresh tokens of ``client`` that are not spent."""
        with self._lock:
            return {token for token, owner in self._logins.items() if owner == client and token not in self._spent}

    def lives(self, access_token: str) -> bool:
        """Whether an access token is valid."""
        _, ends = self._access.get(access_token, ("", 0.0))
        return time.monotonic() < ends

    def revoke(self, access_token: str) -> None:
        """End an access token before it expires."""
        with self._lock:
            self._access.pop(access_token, None)

    def end_login(self, client: str) -> None:
        """Let the server accept no refresh token of ``client`` any more."""
        with self._lock:
            self._end(client)

    def _answer(self, client: str, token: str) -> dict[str, Any]:
        now = time.monotonic()
        spent = self._spent.get(token)
        self.reused += spent is not None
        if self._grace is not None:
            if spent is not None and now > spent + self._grace:
                self._end(client)
            if token not in self._logins:
                return {"error": "invalid_grant", "error_description": "the login has ended"}
        if now > self._ends.get(token, now):
            return {"error": "invalid_grant", "error_description": "the refresh token has expired"}
        life = self._life(client)
        access, refresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._spent.setdefault(token, now)
        self._logins[refresh] = client
        self._access[access] = (client, now + life)
        issued = {"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": life}
        return issued | self._ending(client, refresh)

    def _ending(self, client: str, token: str) -> dict[str, float]:
        """Note when a new refresh token ends, and return the member that announces it."""
        if self._refresh_life is None:
            return {}
        life = self._refresh_life(client)
        self._ends[token] = time.monotonic() + life + self._patience(client)
        return {self._announced(client): life}

    def _end(self, client: str) -> None:
        self._logins = {token: owner for token, owner in self._logins.items() if owner != client}
        self._access = {token: entry for token, entry in self._access.items() if entry[0] != client}
