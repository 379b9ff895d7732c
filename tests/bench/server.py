"""A fast server of the benchmarks: token endpoints that rotate, and APIs that need a token.

    python -m tests.bench.server PORTS

Listens on so many free ports of 127.0.0.1, prints one line of JSON when it is ready, and exits when its stdin closes.

- ``POST /token`` rotates: the lifetime of the new access token is the number at the end of the ``client_id``.
- ``GET /?seconds=S`` answers after that time: 200, or 401 if the token is refused.
- ``POST /control`` with ``{"refuse": TOKEN}`` refuses a token; it returns the log of the token endpoints (``Asked``).
"""

import asyncio
import json
import os
import secrets
import sys
import time
import urllib.request
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs

from tests.support.served import Served

__all__ = ["Asked", "Server"]


class Asked(NamedTuple):
    """A token request: its client, the wall clock when it came, and the monotonic clock when its answer was sent."""

    client: str
    came: float
    answered: float


class Server(Served):
    """The server in a process of its own, and what a benchmark asks it."""

    def __init__(self, ports: int = 1) -> None:
        super().__init__(sys.executable, "-m", "tests.bench.server", str(ports))
        self.origins: list[str] = self.said["origins"]
        self.origin = self.origins[0]

    def endpoint(self, number: int) -> str:
        """Return the token endpoint of a grant; grants take the ports in turn."""
        return f"{self.origins[number % len(self.origins)]}/token"

    def refuse(self, token: str) -> None:
        """Refuse a token from now on."""
        self._control({"refuse": token})

    def log(self) -> list[Asked]:
        """Return the requests to the token endpoints."""
        return [Asked(*each) for each in self._control({})]

    def _control(self, wishes: dict[str, str]) -> list[tuple[str, float, float]]:
        request = urllib.request.Request(f"{self.origin}/control", json.dumps(wishes).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            log: list[tuple[str, float, float]] = json.load(answer)
        return log


class _Connection(asyncio.Protocol):
    refused: ClassVar[set[str]] = set()
    asked: ClassVar[list[Asked]] = []

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            request, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(request.split(" ")[1], headers, rest[:length])

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> None:
        if path == "/token":
            came, client = time.time(), parse_qs(body.decode())["client_id"][0]
            self._send(200, _new_tokens(float(client.rpartition("/")[2])))
            self.asked.append(Asked(client, came, time.monotonic()))
        elif path == "/control":
            self.refused.update(json.loads(body).values())
            self._send(200, self.asked)
        else:
            status = 401 if headers.get("authorization", "").removeprefix("Bearer ") in self.refused else 200
            seconds = float(path.partition("=")[2] or 0)
            asyncio.get_running_loop().call_later(seconds, self._send, status, {})

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        challenge = "WWW-Authenticate: Bearer\r\n" if status == 401 else ""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{challenge}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _new_tokens(life: float) -> dict[str, Any]:
    access, refresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    return {"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": life}


async def _serve(ports: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Connection, "127.0.0.1", 0, backlog=1024) for _ in range(ports)]
    origins = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    print(json.dumps({"origins": origins}), flush=True)
    while await asyncio.to_thread(os.read, 0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
