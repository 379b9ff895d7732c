"""Requests one after the other in one event loop."""

import asyncio
import socket
import threading
from collections import deque

import pytest

from refresher.oauth import http_client
from tests.support.samples import grant


def test_a_loop_serves_again_and_each_request_has_its_own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a connection that an earlier request left could lose an answer, or a deadline could end a loop."""
    idle: deque[asyncio.Runner] = deque()
    monkeypatch.setattr(http_client, "_idle", idle)
    accepted: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        for number in range(3):
            accepted.append(listener.accept()[0])
            accepted[-1].recv(65536)
            if number != 1:
                accepted[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        results = [
            http_client.post(grant(token_endpoint=url), url, {}, ca_file=None, timeout=limit) for limit in (90, 0.5, 90)
        ]
        server.join(90)
    assert [each.status for each in results] == [200, None, 200]
    assert all(each.sent_at is not None for each in results)
    assert len(accepted) == 3
    assert len(idle) == 1
    idle.pop().close()
    for each in accepted:
        each.close()
