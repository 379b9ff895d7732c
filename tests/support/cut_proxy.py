"""A TCP proxy in front of PostgreSQL that cuts or holds connections at a COMMIT, before it or before its confirmation."""

import socket
import threading
from contextlib import suppress
from typing import Final, Literal, Self

__all__ = ["CutProxy"]

When = Literal["never", "before", "confirmation", "always"]
Hold = Literal["never", "statement", "confirmation"]
_COMMIT: Final = b"COMMIT"


class CutProxy:
    """Listens at ``port`` and forwards to ``target``; ``cut`` says when it ends the connection of a COMMIT."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut: When = "never"
        """``always``: it accepts no connection either, and ends those that are there."""
        self.only = b""
        """Cut only a connection that has sent these bytes in its transaction."""
        self.cuts = 0
        self.hold: Hold = "never"
        """Forward the statement with ``only``, or the confirmation of its COMMIT, when ``go`` is set, and not before."""
        self.held = threading.Event()
        """It holds that now; a confirmation is held after the COMMIT has taken effect."""
        self.go = threading.Event()
        self.mute = b""
        """From the moment that it comes, forward nothing of a connection that has sent these bytes, and end it never."""
        self.muted = threading.Event()
        """There is such a connection."""
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._listener.close()
        self.break_off()

    def break_off(self) -> None:
        """End every connection."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        self.held.set()
        self.go.wait(90)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.cut == "always":
                    client.close()
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            drop, hold, silent = threading.Event(), threading.Event(), threading.Event()

            def answers() -> None:
                with suppress(OSError):
                    while data := server.recv(65536):
                        if drop.is_set():
                            break
                        if hold.is_set():
                            self._hold()
                        if not silent.is_set():
                            client.sendall(data)
                    client.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=answers, daemon=True).start()
            seen = b""
            with suppress(OSError):
                while data := client.recv(65536):
                    seen += data
                    if self.mute and self.mute in seen:
                        silent.set()
                        self.muted.set()
                    if silent.is_set():
                        continue
                    if self.hold == "statement" and self.only in data:
                        self._hold()
                    if _COMMIT in data:
                        if self.only in seen and self.cut in ("before", "confirmation"):
                            self.cuts += 1
                            if self.cut == "before":
                                break
                            drop.set()
                        elif self.only in seen and self.hold == "confirmation":
                            hold.set()
                        seen = b""
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            self._open -= {client, server}
