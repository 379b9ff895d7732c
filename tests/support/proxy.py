"""A small TCP proxy: what lies between a client and its server, and what it can do to a connection."""

import re
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

__all__ = [
    "Connection",
    "Fault",
    "Proxy",
    "answers",
    "closes_after",
    "closes_before",
    "cuts_handshake",
    "drips",
    "duplicates",
    "hangs",
    "holds",
    "passes",
    "refuses",
    "resets_after",
    "resets_before",
    "resets_behind",
    "resets_midway",
    "speaks_no_tls",
    "swallows",
    "truncates",
    "tunnels",
]

_AT_ONCE: Final = struct.pack("ii", 1, 0)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Connection:
    """One connection of a client, for a fault to deal with; whatever ends it is an ``OSError``."""

    def __init__(self, proxy: "Proxy", plain: socket.socket) -> None:
        self.plain = plain
        self._proxy = proxy
        self._client: socket.socket | None = None
        self._server: socket.socket | None = None

    @property
    def client(self) -> socket.socket:
        """The client, behind TLS where the proxy speaks it."""
        if self._client is None:
            tls = self._proxy.tls
            self._client = self.plain if tls is None else tls.wrap_socket(self.plain, server_side=True)
        return self._client

    def request(self) -> bytes:
        """Read a whole request of the client; nothing of it is passed on."""
        request = _message(self.client)
        self.note(request)
        return request

    def note(self, request: bytes) -> None:
        """Remember what came from the client."""
        self._proxy.requests.append(request)

    def forward(self, data: bytes) -> socket.socket:
        """Pass something on to the server."""
        if self._server is None:
            self._server = socket.create_connection(self._proxy.server, timeout=90)
        self._server.sendall(data)
        return self._server

    def exchange(self) -> bytes:
        """Pass the request on and return the whole answer: the server is done with it, the client knows nothing."""
        answer = _message(self.forward(self.request()))
        self._proxy.answered += 1
        return answer

    def reset(self) -> None:
        """End the connection as a machine does that knows nothing of it."""
        (self._client or self.plain).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.close()

    def until_the_client_leaves(self) -> None:
        """Wait, however long it takes."""
        self.client.settimeout(None)
        while self.client.recv(65536):
            pass

    def pause(self, seconds: float) -> None:
        """Be slow, unless the proxy ends."""
        if self._proxy.ending.wait(seconds):
            raise ConnectionAbortedError("the proxy ends")

    def close(self) -> None:
        """Let go of both sides."""
        for side in (self._client, self.plain, self._server):
            if side is not None:
                side.close()

    def interrupt(self) -> None:
        """Wake the thread that waits for a side, from another thread."""
        for side in (self.plain, self._client, self._server):
            if side is not None:
                try:
                    # Not of ``SSLSocket``: that would forget its TLS under the thread that uses it.
                    socket.socket.shutdown(side, socket.SHUT_RDWR)
                except OSError:
                    continue  # it has ended by itself


Fault = Callable[[Connection], None]


class Proxy:
    """Stands before ``url`` and deals with each connection by the next of its faults; where none is left, it passes.

    ``otherwise``: what to do then instead; ``connect`` makes a connection of what was accepted.
    """

    def __init__(
        self,
        url: str,
        *faults: Fault,
        tls: ssl.SSLContext | None = None,
        otherwise: Fault | None = None,
        connect: Callable[["Proxy", socket.socket], Connection] = Connection,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.server = (parts.hostname, parts.port)
        self.tls = tls
        self._otherwise = otherwise or passes
        self._connect = connect
        self.ending = threading.Event()
        self.faults = deque(faults)
        self.connections = 0
        """How many were accepted."""
        self.requests: list[bytes] = []
        """What came whole of clients, and each piece that went through a tunnel."""
        self.answered = 0
        """How many requests the server has answered, also those whose answer reached no client."""
        self._path = parts.path
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self._port = 0
        self.up()

    @property
    def url(self) -> str:
        """The server's address, as seen through this proxy."""
        # By name where there is TLS: certificates are made for names.
        start = f"http://127.0.0.1:{self._port}" if self.tls is None else f"https://localhost:{self._port}"
        return start + self._path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self.down()
        with self._lock:
            for connection in self._open:
                connection.interrupt()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a fault does not end"

    def up(self) -> None:
        """Listen, again at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._begin(self._accept, self._listener)

    def down(self) -> None:
        """Refuse connections as a machine does on which nothing listens."""
        if self._listener is not None:
            # Closing alone would not wake the thread that accepts, and it would take one connection more.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _begin(self, work: Callable[[socket.socket], None], on: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(on,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            self._begin(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(90)
        connection = self._connect(self, plain)
        with self._lock:
            self._open.add(connection)
            fault = self.faults.popleft() if self.faults else self._otherwise
            self.connections += 1
        try:
            if not self.ending.is_set():
                fault(connection)
        except OSError:
            pass  # a side has left, as it may
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _message(source: socket.socket) -> bytes:
    """Read one message of HTTP that says how long it is, as those of a token endpoint do."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _some(source)
    length = _LENGTH.search(data, 0, end + 2)
    while length is not None and len(data) < end + 4 + int(length[1]):
        data += _some(source)
    return data


def _some(source: socket.socket) -> bytes:
    some = source.recv(65536)
    if not some:
        raise ConnectionAbortedError("it broke off")
    return some


# --- no fault -----------------------------------------------------------------------------------------------------


def passes(connection: Connection) -> None:
    """Be a good proxy."""
    connection.client.sendall(connection.exchange())
    connection.until_the_client_leaves()


def tunnels(connection: Connection) -> None:
    """Pass bytes both ways after a CONNECT (RFC 9110 section 9.3.6)."""
    connection.request()
    client, server = connection.client, connection.forward(b"")
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    while True:
        for source in select.select([client, server], [], [])[0]:
            piece = _some(source)
            if source is client:
                connection.note(piece)
            (server if source is client else client).sendall(piece)


def holds(release: threading.Event) -> Fault:
    """Keep the server's answer back until ``release``."""

    def hold(connection: Connection) -> None:
        answer = connection.exchange()
        while not release.is_set():
            connection.pause(0.01)
        connection.client.sendall(answer)
        connection.until_the_client_leaves()

    return hold


def drips(seconds: float, *, body_only: bool = False) -> Fault:
    """Pass the server's answer on one byte at a time."""

    def drip(connection: Connection) -> None:
        answer = connection.exchange()
        at_once = answer.index(b"\r\n\r\n") + 4 if body_only else 0
        connection.client.sendall(answer[:at_once])
        for byte in answer[at_once:]:
            connection.pause(seconds)  # the fault itself, not a wait
            connection.client.sendall(bytes([byte]))
        connection.until_the_client_leaves()

    return drip


def duplicates(connection: Connection) -> None:
    """Send the server's answer twice."""
    answer = connection.exchange()
    connection.client.sendall(answer + answer)
    connection.until_the_client_leaves()


def resets_behind(connection: Connection) -> None:
    """Pass the whole answer on and reset at once."""
    connection.client.sendall(connection.exchange())
    connection.reset()


# --- before the server --------------------------------------------------------------------------------------------


def refuses(connection: Connection) -> None:
    """Reset what was accepted, at once."""
    connection.reset()


def speaks_no_tls(connection: Connection) -> None:
    """Answer in the clear, whatever was said."""
    connection.plain.recv(65536)
    connection.plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def cuts_handshake(connection: Connection) -> None:
    """End the connection in the middle of the client's first words."""
    connection.plain.recv(16)
    connection.reset()


def hangs(connection: Connection) -> None:
    """Accept and say nothing: where there is TLS, not even hello."""
    while connection.plain.recv(65536):
        pass


def resets_before(connection: Connection) -> None:
    """Take the request and reset: the server never sees it."""
    connection.request()
    connection.reset()


def resets_midway(connection: Connection) -> None:
    """Let the first bytes through to the server, and reset."""
    connection.forward(connection.client.recv(20))
    connection.reset()


def closes_before(connection: Connection) -> None:
    """Take the request and close in good order, without a word: the server never sees it."""
    connection.request()


def swallows(connection: Connection) -> None:
    """Take the request and say nothing, for as long as the client can bear it: the server never sees it."""
    connection.request()
    connection.until_the_client_leaves()


def answers(status: str, body: bytes, headers: Iterable[str] = ()) -> Fault:
    """Answer in the server's place, as gateways and captive portals do: the server never sees the request."""

    def answer(connection: Connection) -> None:
        connection.request()
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        connection.client.sendall("\r\n".join(lines).encode() + body)

    return answer


# --- after the server ---------------------------------------------------------------------------------------------


def resets_after(connection: Connection) -> None:
    """Have the server process the request, and reset in place of its answer."""
    connection.exchange()
    connection.reset()


def closes_after(connection: Connection) -> None:
    """Have the server process the request, and close in good order in place of its answer."""
    connection.exchange()


def truncates(kept: int | bytes) -> Fault:
    """Pass on so many bytes of the answer (negative: all but so many), or all to the end of a part of it, and close."""

    def truncate(connection: Connection) -> None:
        answer = connection.exchange()
        length = answer.index(kept) + len(kept) if isinstance(kept, bytes) else kept
        connection.client.sendall(answer[:length])

    return truncate
