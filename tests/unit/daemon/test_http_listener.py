"""The listener of the health pages, in one process."""

import socket
import threading

import pytest
from starlette.types import Receive, Scope, Send

from refresher.daemon.http_listener import Listener
from tests.support.command import wait_until


async def unanswered(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer nothing."""


def test_a_listener_that_an_internal_error_ended_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the daemon would never open its pages again, and a probe would have it killed in an exchange."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    listening = socket.create_server(("127.0.0.1", 0))
    listener = Listener(listening, unanswered, "health")
    assert listener.is_alive()
    monkeypatch.setattr(Listener, "_accept", lambda _: 1 / 0)
    with socket.create_connection(listening.getsockname()):
        wait_until(lambda: not listener.is_alive(), "it has ended")
    listener.close()


def test_a_listener_without_a_thread_leaves_no_open_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the socket would accept connections that nobody answers, and health would wait in vain."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        Listener(listening, unanswered, "health")
    assert listening.fileno() == -1
