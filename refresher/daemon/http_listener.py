"""Serves the health pages at one listening socket, in one thread: idle connections never keep others from an answer."""

import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from resource import RLIMIT_NOFILE, getrlimit
from typing import Final

__all__ = ["Listener"]

_TIMEOUT: Final = 2.0
_MIN_TIME: Final = 0.2
_MAX_CONNECTIONS: Final = 512
_LARGEST: Final = 16 * 1024
_PAUSE: Final = 0.05
_WHOLE: Final = re.compile(rb"\n\r?\n")


class _Connection:
    """A connection, with the request so far or the rest of the answer."""

    __slots__ = ("answer", "began", "request", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.began = time.monotonic()
        self.request = b""
        self.answer: bytes | None = None


class Listener:
    """Answers one request on each connection, then closes it.

    When all slots are taken, the oldest connection loses its slot, but not in its first 0.2 s: a client that sends its
    request at once gets its answer. Meanwhile, further connections wait in the queue of the system.
    """

    def __init__(self, listening: socket.socket, answer: Callable[[bytes], bytes], name: str) -> None:
        """Serve ``listening`` until ``close``; ``answer`` returns the answer to a whole request."""
        listening.setblocking(False)
        self._listening: Final = listening
        self._answer: Final = answer
        # The connections to authorization servers need descriptors too.
        self._slots: Final = max(min(_MAX_CONNECTIONS, getrlimit(RLIMIT_NOFILE)[0] // 2), 8)
        # In the order of their arrival, so the first is the oldest.
        self._connections: Final[dict[socket.socket, _Connection]] = {}
        self._selector: Final = selectors.DefaultSelector()
        self._accepting = False
        self._end, self._ended = socket.socketpair()
        self._selector.register(self._ended, selectors.EVENT_READ)
        self._thread: Final = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            for each in (self._selector, self._end, self._ended, listening):
                each.close()
            raise

    def is_alive(self) -> bool:
        """Whether it serves; an internal error may have ended it."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._end.close()
        self._thread.join()

    def _serve(self) -> None:
        with self._selector, self._ended, self._listening:
            while True:
                wait = self._make_room()
                ready = [key.fileobj for key, _ in self._selector.select(wait)]
                if self._ended in ready:
                    break
                for each in ready:
                    if each is self._listening:
                        self._accept()
                    elif (connection := self._connections.get(each)) is not None:  # type: ignore[call-overload]
                        self._proceed(connection)
            for connection in list(self._connections.values()):
                self._close(connection)

    def _make_room(self) -> float | None:
        """Close the connections that have had their time, and accept others only while there is a slot.

        Return the seconds to the next such change; ``None`` without a connection.
        """
        while True:
            oldest = next(iter(self._connections.values()), None)
            full = len(self._connections) >= self._slots
            left = None if oldest is None else oldest.began + (_MIN_TIME if full else _TIMEOUT) - time.monotonic()
            if oldest is None or left is None or left > 0:
                break
            self._drop(oldest)
        if full is self._accepting:
            self._accepting = not full
            if full:
                self._selector.unregister(self._listening)
            else:
                self._selector.register(self._listening, selectors.EVENT_READ)
        return left

    def _accept(self) -> None:
        """Accept what waits, as long as there are slots."""
        while len(self._connections) < self._slots:
            try:
                accepted, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                time.sleep(_PAUSE)  # no descriptor is left, or the client has gone
                return
            accepted.setblocking(False)
            connection = self._connections[accepted] = _Connection(accepted)
            self._selector.register(accepted, selectors.EVENT_READ)
            self._proceed(connection)

    def _proceed(self, connection: _Connection) -> None:
        """Read or write as much as is possible now; close the connection if that was all."""
        try:
            if connection.answer is None:
                received = connection.socket.recv(_LARGEST)
                connection.request += received
                if not _WHOLE.search(connection.request):
                    if not received or len(connection.request) > _LARGEST:
                        self._close(connection)
                    return
                connection.answer = self._answer(connection.request)
                self._selector.modify(connection.socket, selectors.EVENT_WRITE)
            connection.answer = connection.answer[connection.socket.send(connection.answer) :]
            if connection.answer:
                return
        except BlockingIOError:
            return
        except Exception:  # noqa: BLE001  neither a client that goes nor an internal error ends the pages
            self._close(connection)
            return
        self._close(connection)

    def _drop(self, connection: _Connection) -> None:
        """Close a connection; if its request has come meanwhile, answer it first."""
        self._proceed(connection)
        if connection.socket in self._connections:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.socket]
        self._selector.unregister(connection.socket)
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_WR)
        connection.socket.close()
