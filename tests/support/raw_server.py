"""A server that sends raw bytes, for answers that no normal HTTP server gives."""

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["RawServer"]


class RawServer:
    """Calls ``answer`` in a thread for each connection, with its request up to ``marker``."""

    def __init__(
        self,
        answer: Callable[[socket.socket, bytes], None],
        wrap: Callable[[socket.socket], socket.socket] = lambda connection: connection,
        marker: bytes = b"refresh_token=",
    ) -> None:
        self._answer = answer
        self._marker = marker
        self._wrap = wrap
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self.requests: list[bytes] = []
        self.token_endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}/token"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing alone does not wake the accepting thread, which would accept one more connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(60)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(90)
        try:
            connection = self._wrap(plain)
        except OSError:
            plain.close()
            return  # a client that does not trust the certificate
        with connection:
            request = b""
            while self._marker not in request:
                chunk = connection.recv(65536)
                if not chunk:
                    return
                request += chunk
            self.requests.append(request)
            try:
                self._answer(connection, request)
            except OSError:
                return  # the client has closed the connection
