"""The network between refresher and its servers: a proxy with random faults, which it reports to the ledger."""

import random
import socket
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from tests.faults.soak.ledger import Ledger
from tests.faults.soak.logins import Presentation
from tests.support import proxy
from tests.support.proxy import Connection, Fault, Proxy

__all__ = ["KINDS", "Kind", "Network"]


class Kind(NamedTuple):
    """A kind of fault of a connection."""

    name: str
    weight: float
    delivers: bool
    """Whether refresher gets an answer that it can use."""
    fault: Callable[[random.Random], Fault]


def _late(rng: random.Random) -> Fault:
    seconds = rng.uniform(0.5, 4.0)

    def delay(connection: Connection) -> None:
        answer = connection.exchange()
        connection.pause(seconds)  # the fault itself, not a wait
        connection.client.sendall(answer)
        connection.until_the_client_leaves()

    return delay


def _never(connection: Connection) -> None:
    connection.exchange()
    connection.until_the_client_leaves()


def _gives_up(status: str) -> Fault:
    def give_up(connection: Connection) -> None:
        connection.exchange()
        connection.client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    return give_up


_REJECTED: Final = proxy.answers("401 Unauthorized", b'{"error": "invalid_client"}', ["Content-Type: application/json"])
_BUSY: Final = [
    proxy.answers("503 Service Unavailable", b"", ["Retry-After: 2"]),
    proxy.answers("429 Too Many Requests", b"", ["Retry-After: 1"]),
]

KINDS: Final = (
    Kind("answer late", 4, True, _late),
    Kind("answer dripped", 2, True, lambda _: proxy.drips(0.001)),
    Kind("answer doubled", 2, True, lambda _: proxy.duplicates),
    Kind("reset behind the answer", 1, False, lambda _: proxy.resets_behind),
    Kind("busy", 3, True, lambda rng: rng.choice(_BUSY)),
    Kind("client rejected", 1, True, lambda _: _REJECTED),
    Kind("request refused", 1, False, lambda _: proxy.refuses),
    Kind("request cut", 1, False, lambda _: proxy.resets_midway),
    Kind("request lost", 2, False, lambda rng: rng.choice([proxy.resets_before, proxy.closes_before])),
    Kind("answer lost", 2, False, lambda rng: rng.choice([proxy.resets_after, proxy.closes_after])),
    Kind("answer cut", 1, False, lambda rng: proxy.truncates(-rng.randrange(2, 200))),
    Kind("answer never", 0.3, False, lambda _: _never),
    Kind("500 after the spend", 1, False, lambda _: _gives_up("500 Internal Server Error")),
    Kind("504 after the spend", 1, False, lambda _: _gives_up("504 Gateway Timeout")),
)

_PLAIN: Final = Kind("", 0, True, lambda _: proxy.passes)


class _RecordedConnection(Connection):
    """A connection that records request and answer in the ledger before it forwards them."""

    def __init__(self, between: Proxy, plain: socket.socket, ledger: Ledger) -> None:
        super().__init__(between, plain)
        self.kind = _PLAIN
        self._ledger = ledger
        self._presentation: Presentation | None = None

    def request(self) -> bytes:
        """Read a whole request."""
        request = super().request()
        body = parse_qs(request.partition(b"\r\n\r\n")[2].decode())
        for token in body.get("refresh_token", []):
            self._presentation = self._ledger.presented(token, fault=self.kind.name, delivers=self.kind.delivers)
        return request

    def exchange(self) -> bytes:
        """Forward the request to the server, and return the answer."""
        answer = super().exchange()
        if self._presentation is not None:
            head, _, body = answer.partition(b"\r\n\r\n")
            self._ledger.answered(self._presentation, int(head.split()[1]), body)
        return answer


class Network:
    """The network to one token endpoint: a random fault by ``seed`` for a ``share`` of the connections, unless ``calm``."""

    def __init__(self, url: str, ledger: Ledger, seed: str, share: float) -> None:
        self.calm = False
        self.burst: Fault | None = None
        """A fault of every connection for a while."""
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._share = share
        self.proxy = Proxy(
            url, otherwise=self._deal, connect=lambda between, plain: _RecordedConnection(between, plain, ledger)
        )

    def _deal(self, connection: Connection) -> None:
        assert isinstance(connection, _RecordedConnection)
        if self.burst is not None and not self.calm:
            connection.kind = _PLAIN._replace(name="client rejected")
            return self.burst(connection)
        roll, choice, share = self._rng.random(), self._rng.random(), self._share
        if not self.calm and roll < share:
            (connection.kind,) = random.Random(choice).choices(KINDS, [kind.weight for kind in KINDS])
            self._ledger.journal.count(connection.kind.name)
        return connection.kind.fault(random.Random(choice))(connection)

    def reject(self, *, on: bool) -> None:
        """Start or stop to reject every client."""
        self.burst = _REJECTED if on else None
