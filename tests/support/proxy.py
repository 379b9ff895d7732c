"""A small TCP proxy between a client and its server, with faults of a connection."""

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
    """One connection of a client. A fault handles it; an ``OSError`` ends it."""

    def __init__(self, proxy: "Proxy", plain: socket.socket) -> None:
        self.plain = plain
        self._proxy = proxy
        self._client: socket.socket | None = None
        self._server: socket.socket | None = None

    @property
    def client(self) -> socket.socket:
        """The socket of the client, with TLS if the proxy has it."""
        if self._client is None:
            tls = self._proxy.tls
            self._client = self.plain if tls is None else tls.wrap_socket(self.plain, server_side=True)
        return self._client

    def request(self) -> bytes:
        """Read a complete request of the client, without forwarding it."""
        request = _message(self.client)
        self.note(request)
        return request

    def note(self, request: bytes) -> None:
        """Record data from the client."""
        self._proxy.requests.append(request)

    def forward(self, data: bytes) -> socket.socket:
        """Send data to the server."""
        if self._server is None:
            self._server = socket.create_connection(self._proxy.server, timeout=90)
        self._server.sendall(data)
        return self._server

    def exchange(self) -> bytes:
        """Forward the request and return the complete answer, without sending it to the client."""
        answer = _message(self.forward(self.request()))
        self._proxy.answered += 1
        return answer

    def reset(self) -> None:
        """Reset the connection."""
        (self._client or self.plain).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.close()

    def until_the_client_leaves(self) -> None:
        """Wait without a limit until the client closes the connection."""
        self.client.settimeout(None)
        while self.client.recv(65536):
            pass

    def pause(self, seconds: float) -> None:
        """Wait, unless the proxy ends."""
        if self._proxy.ending.wait(seconds):
            raise ConnectionAbortedError("the proxy ends")

    def close(self) -> None:
        """Close both sides."""
        for side in (self._client, self.plain, self._server):
            if side is not None:
                side.close()

    def interrupt(self) -> None:
        """Wake the thread that waits for one side, from another thread."""
        for side in (self.plain, self._client, self._server):
            if side is not None:
                try:
                    # Not SSLSocket.shutdown, which removes TLS while another thread uses it.
                    socket.socket.shutdown(side, socket.SHUT_RDWR)
                except OSError:
                    continue  # it is already closed


Fault = Callable[[Connection], None]


class Proxy:
    """Is in front of ``url`` and handles each connection with the next of its faults.

    ``otherwise``: the fault if none is left, by default none. ``connect``: makes a ``Connection`` from an accepted socket.
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
        """The number of accepted connections."""
        self.requests: list[bytes] = []
        """The complete requests of clients, and each piece of data in a tunnel."""
        self.answered = 0
        """The number of answers of the server, including those that reached no client."""
        self._path = parts.path
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self._port = 0
        self.up()

    @property
    def url(self) -> str:
        """The address of the server through this proxy."""
        # With TLS by name, because certificates are for names.
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
        """Listen; after ``down``, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._begin(self._accept, self._listener)

    def down(self) -> None:
        """Refuse connections, as if nothing listens."""
        if self._listener is not None:
            # Closing alone does not wake the accepting thread, which would accept one more connection.
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
            pass  # one side has closed the connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _message(source: socket.socket) -> bytes:
    """Read one HTTP message with Content-Length, as a token endpoint sends it."""
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
        raise ConnectionAbortedError("the connection was closed")
    return some


# --- no fault -----------------------------------------------------------------------------------------------------


def passes(connection: Connection) -> None:
    """Forward request and answer."""
    connection.client.sendall(connection.exchange())
    connection.until_the_client_leaves()


def tunnels(connection: Connection) -> None:
    """Forward bytes in both directions after a CONNECT (RFC 9110 section 9.3.6)."""
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
    """Hold the answer of the server until ``release``."""

    def hold(connection: Connection) -> None:
        answer = connection.exchange()
        while not release.is_set():
            connection.pause(0.01)
        connection.client.sendall(answer)
        connection.until_the_client_leaves()

    return hold


def drips(seconds: float, *, body_only: bool = False) -> Fault:
    """Forward the answer of the server byte by byte."""

    def drip(connection: Connection) -> None:
        answer = connection.exchange()
        at_once = answer.index(b"\r\n\r\n") + 4 if body_only else 0
        connection.client.sendall(answer[:at_once])
        for byte in answer[at_once:]:
            connection.pause(seconds)  # this is the fault, not a wait
            connection.client.sendall(bytes([byte]))
        connection.until_the_client_leaves()

    return drip


def duplicates(connection: Connection) -> None:
    """Send the answer of the server twice."""
    answer = connection.exchange()
    connection.client.sendall(answer + answer)
    connection.until_the_client_leaves()


def resets_behind(connection: Connection) -> None:
    """Forward the complete answer and reset at once."""
    connection.client.sendall(connection.exchange())
    connection.reset()


# --- before the server --------------------------------------------------------------------------------------------


def refuses(connection: Connection) -> None:
    """Reset the connection at once."""
    connection.reset()


def speaks_no_tls(connection: Connection) -> None:
    """Answer without TLS."""
    connection.plain.recv(65536)
    connection.plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def cuts_handshake(connection: Connection) -> None:
    """Reset the connection during the TLS handshake."""
    connection.plain.recv(16)
    connection.reset()


def hangs(connection: Connection) -> None:
    """Accept and send nothing, not even a TLS handshake."""
    while connection.plain.recv(65536):
        pass


def resets_before(connection: Connection) -> None:
    """Read the request and reset; the server never receives it."""
    connection.request()
    connection.reset()


def resets_midway(connection: Connection) -> None:
    """Forward the first bytes to the server, and reset."""
    connection.forward(connection.client.recv(20))
    connection.reset()


def closes_before(connection: Connection) -> None:
    """Read the request and close without an answer; the server never receives it."""
    connection.request()


def swallows(connection: Connection) -> None:
    """Read the request and send nothing until the client gives up; the server never receives it."""
    connection.request()
    connection.until_the_client_leaves()


def answers(status: str, body: bytes, headers: Iterable[str] = ()) -> Fault:
    """Answer instead of the server, as gateways and captive portals do; the server never receives the request."""

    def answer(connection: Connection) -> None:
        connection.request()
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        connection.client.sendall("\r\n".join(lines).encode() + body)

    return answer


# --- after the server ---------------------------------------------------------------------------------------------


def resets_after(connection: Connection) -> None:
    """Forward the request, and reset instead of forwarding the answer."""
    connection.exchange()
    connection.reset()


def closes_after(connection: Connection) -> None:
    """Forward the request, and close instead of forwarding the answer."""
    connection.exchange()


def truncates(kept: int | bytes) -> Fault:
    """Forward the first ``kept`` bytes of the answer (negative: all but so many), or up to the text ``kept``, and close."""

    def truncate(connection: Connection) -> None:
        answer = connection.exchange()
        length = answer.index(kept) + len(kept) if isinstance(kept, bytes) else kept
        connection.client.sendall(answer[:length])

    return truncate
