"""What the servers of the tests listen with: a thread for each connection, and many connections at once."""

import sys
from http.server import ThreadingHTTPServer
from typing import Any

__all__ = ["Listener"]


class Listener(ThreadingHTTPServer):
    """Takes it that a client may leave when it likes."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless it was the client's leaving."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
