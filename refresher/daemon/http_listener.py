"""Serves HTTP at one listening socket, in one thread: idle connections never keep others from an answer.

uvicorn parses the requests and runs the application. It accepts without limit, and waits for a whole request without
limit, so this module accepts, counts and closes the connections itself.
"""

import asyncio
import logging
import socket
import threading
from contextlib import suppress
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

__all__ = ["Listener"]

log = logging.getLogger(__name__)

_TIMEOUT: Final = 2.0
_ANSWER_TIMEOUT: Final = 10.0
_STALLED: Final = 30.0
_MIN_TIME: Final = 0.2
_MAX_CONNECTIONS: Final = 512
_MAX_STREAMS: Final = 32
_LARGEST: Final = 16 * 1024
_PAUSE: Final = 0.05

# Of every answer, also of an error. Versions are not revealed.
_HEADERS: Final = [
    (b"server", b"refresher"),
    (b"connection", b"close"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class _Slots:
    """The connections of a listener, each in the order of arrival."""

    def __init__(self) -> None:
        # The connections to authorization servers need descriptors too.
        limit = getrlimit(RLIMIT_NOFILE)[0]
        self.most: Final = max(min(_MAX_CONNECTIONS, limit // 2), 8)
        self.most_streams: Final = max(min(_MAX_STREAMS, limit // 16), 2)
        self.silent: Final[dict[Connection, None]] = {}
        """Those without a whole request."""
        self.answering: Final[dict[Connection, None]] = {}
        self.streams: Final[dict[Connection, None]] = {}
        self.left: Final = asyncio.Event()

    def move(self, connection: "Connection", to: "dict[Connection, None] | None") -> None:
        """Put a connection elsewhere; ``None``: it has left."""
        for each in (self.silent, self.answering, self.streams):
            each.pop(connection, None)
        if to is not None:
            to[connection] = None
        self.left.set()

    async def make_room(self) -> None:
        """Return when there is a slot.

        The oldest connection without a whole request loses its slot, else the oldest of all; but none in its first
        0.2 s: a client that sends its request at once gets its answer.
        """
        while self._full():
            left = min(next(iter(each)).age_left() for each in (self.silent, self.answering) if each)
            if left > 0:
                self.left.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.left.wait(), left)
                continue
            for _ in range(2):  # its request may have come in this moment: read what is there
                await asyncio.sleep(0)
            for each in (self.silent, self.answering):
                if each and self._full() and (oldest := next(iter(each))).age_left() <= 0:
                    oldest.drop()

    def _full(self) -> bool:
        return len(self.silent) + len(self.answering) >= self.most


class Connection(H11Protocol):
    """One connection with one request. It is closed if the request, or the client that reads, takes too long."""

    def __init__(self, slots: _Slots, config: uvicorn.Config, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(config, state, {"connection": self}, loop)
        self._slots: Final = slots
        self._arrived: Final = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ignored = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's narrower type
        super().connection_made(transport)
        self._slots.move(self, self._slots.silent)
        self._close_after(_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None:  # a body, or a second request
            self._ignored += len(data)
            if self._ignored > _LARGEST:
                self.drop()
            return
        super().data_received(data)
        if self.cycle is not None:
            self._slots.move(self, self._slots.answering)
            self._close_after(_ANSWER_TIMEOUT)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn closes at once
        # A client that sends no more still reads, but a stream without a reader ends.
        return self in self._slots.answering

    def pause_writing(self) -> None:
        super().pause_writing()
        if self in self._slots.streams:
            self._close_after(_STALLED)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self in self._slots.streams:
            self._close_after(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_after(None)
        super().connection_lost(exc)
        self._slots.move(self, None)
        self.app_state = {}  # else the memory of many connections waits for the garbage collector

    def become_stream(self) -> bool:
        """Leave the slot of a short answer for that of a stream, without a limit of time; False if all are taken."""
        if len(self._slots.streams) >= self._slots.most_streams:
            return False
        self._slots.move(self, self._slots.streams)
        self._close_after(None)
        return True

    def age_left(self) -> float:
        """Return the seconds in which it cannot lose its slot."""
        return self._arrived + _MIN_TIME - self.loop.time()

    def drop(self) -> None:
        """Close the connection at once, and give its slot away."""
        self._slots.move(self, None)
        self.transport.abort()

    def _close_after(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.drop)


class Listener:
    """Answers one request on each connection, then closes it.

    When all slots are taken, further connections wait in the queue of the system until one is free.
    """

    def __init__(self, listening: socket.socket, app: ASGIApp, name: str) -> None:
        """Serve ``listening`` until ``close``. Raises ``RuntimeError`` if there is no thread, ``OSError``."""
        listening.setblocking(False)
        self._listening: Final = listening
        self._app: Final = app
        try:
            self._loop: Final = asyncio.new_event_loop()
        except OSError:
            listening.close()
            raise
        self._ended: Final = asyncio.Event()
        self._thread: Final = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            listening.close()
            raise

    def is_alive(self) -> bool:
        """Whether it serves; an internal error may have ended it."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop listening, and close all connections."""
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        with self._listening:
            try:
                self._loop.run_until_complete(self._serve())
            except Exception as error:  # noqa: BLE001  the endpoint makes a new listener
                log.warning("HTTP pages: internal error (%s); please report it", type(error).__name__)
            finally:
                self._loop.close()

    async def _serve(self) -> None:
        # The loggers of uvicorn have no handler, as those of all libraries (common/logs.py).
        config = uvicorn.Config(
            self._app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_LARGEST,
        )
        config.load()
        state = ServerState()
        state.default_headers = _HEADERS
        slots = _Slots()
        accepting = asyncio.ensure_future(self._accept(slots, config, state))
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait((accepting, ended), return_when=asyncio.FIRST_COMPLETED)
        for connection in list(cast("set[Any]", state.connections)):
            connection.drop()
        if state.tasks:  # most answers end with their connections
            await asyncio.wait(state.tasks, timeout=_PAUSE)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait((accepting, ended, *tasks))
        if not accepting.cancelled():
            accepting.result()

    async def _accept(self, slots: _Slots, config: uvicorn.Config, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await slots.make_room()
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError:
                await asyncio.sleep(_PAUSE)  # no descriptor is left, or the client has gone
                continue
            try:
                await loop.connect_accepted_socket(lambda: Connection(slots, config, state), accepted)
            except Exception:
                accepted.close()
                raise
