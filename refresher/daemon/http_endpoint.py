"""Serves the pages where the settings say: at the address of --listen, and health at a private socket."""

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from refresher.common.addresses import Address, shown_address
from refresher.config import Settings
from refresher.daemon.page_access import PageToken
from refresher.daemon.readiness import Health
from refresher.operations.events import Event
from refresher.storage.health_socket import PrivateSocket
from refresher.storage.store import Store

if TYPE_CHECKING:
    # uvicorn and starlette: the thread of the endpoint imports them, once rotations have begun.
    from refresher.daemon.http_listener import Listener
    from refresher.daemon.live_grants import LiveGrants
    from refresher.daemon.pages import Sources

__all__ = ["HTTPEndpoint"]

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_FIRST_PAUSE: Final = 5.0
_MAX_PAUSE: Final = 60.0
_CHECK_INTERVAL: Final = 5.0
_LONGEST_START: Final = 5.0


Metrics = Callable[[], tuple[bytes, str]]
"""Returns the metrics, and their media type."""

History = Callable[[str, float], Sequence[Event]]
"""Returns the events of a grant since a time (epoch seconds)."""


class _Served(NamedTuple):
    """What serves at the address of --listen."""

    address: Address
    listener: "Listener"
    live: "LiveGrants"


class HTTPEndpoint:
    """Serves in its own threads, and tries again while an address cannot be used: rotation never depends on it."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health: Final = health
        self.metrics: Metrics | None = None
        """What ``/metrics`` shows; ``None``: there is no such page. Set it before ``use``."""
        self.history: History | None = None
        """The events that the page shows; ``None``: none. Set it before ``use``."""
        self.store: Callable[[], Store]
        """Returns where the grants are that the page shows. Set it before ``use``."""
        self._wanted: Settings | None = None
        self._changed: Final = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._begun: Final = threading.Event()
        self._token: Final = PageToken()
        self._served: _Served | None = None
        self._failed: Address | None = None
        self._pause, self._retry_at = _FIRST_PAUSE, 0.0
        self._private: tuple[PrivateSocket, Listener] | None = None
        self._problem: tuple[Path, str] | None = None

    def use(self, settings: Settings) -> None:
        """Serve at the addresses of ``settings`` and nowhere else. Never waits."""
        self._wanted = settings
        self._changed.set()
        self.changed(None)
        self._start()

    def begin(self) -> None:
        """Note that rotations have begun: now the start of the server delays none. Call it again and again."""
        self._begun.set()
        self._start()

    def changed(self, names: Collection[str] | None) -> None:
        """Note which grants have changed, for the page; ``None``: perhaps all. Never waits."""
        if (served := self._served) is not None:
            served.live.changed(names)

    def listening(self) -> bool | None:
        """Whether it serves at the address of --listen; ``None`` without one, and before the first attempt."""
        address, served = None if self._wanted is None else self._wanted.listen, self._served
        if address is None:
            return None
        if served is not None and served.address == address:
            return True
        return False if self._failed == address else None

    def close(self) -> None:
        """Remove the private socket: the process ends."""
        self._closed = True
        if (private := self._private) is not None:
            private[0].remove()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._keep, name="health", daemon=True)
            with suppress(RuntimeError):  # the system has no thread left: the next heartbeat tries again
                thread.start()
                self._thread = thread

    def _keep(self) -> None:
        """Bring about what is wanted, again and again. A slow resolver or disk stops only this thread."""
        error_before: str | None = None
        self._begun.wait(_LONGEST_START)
        while not self._closed and (wanted := self._wanted) is not None:
            try:
                # Before the address, which may have to be resolved, for minutes.
                self._token.refresh(wanted.page_token_file)
                self._keep_private(wanted.directories.health_socket)
                self._keep_address(wanted.listen)
            except Exception as error:  # noqa: BLE001  without these pages, a probe would end the rotations
                if (kind := type(error).__name__) != error_before:
                    error_before = kind
                    log.warning("health pages: internal error (%s); please report it", kind)
            self._changed.wait(_CHECK_INTERVAL)
            self._changed.clear()

    def _keep_address(self, address: Address | None) -> None:
        served = self._served
        if served is not None and not served.listener.is_alive():
            served.listener.close()
            self._served = served = None
        if served is not None and served.address != address and (address is None or served.address[1] == address[1]):
            # A former 0.0.0.0 would occupy the same port of 127.0.0.1.
            self._served = None
            served.listener.close()
        if address is None or (served is not None and served.address == address):
            self._failed = None
            return
        if self._failed == address and time.monotonic() < self._retry_at:
            return
        try:
            listening = _listening(address)
            host, port = listening.getsockname()[:2]
            loopback = ipaddress.ip_address(host.partition("%")[0]).is_loopback
            made = self._serve(address, listening, loopback=loopback)
        except (OSError, RuntimeError) as error:  # also without a thread
            if self._failed != address:
                self._failed, self._pause = address, _FIRST_PAUSE
                log.warning(
                    "cannot listen on %s: %s; refresher rotates without its pages, and tries again: "
                    "stop the other program, or change --listen",
                    shown_address(address),
                    _reason(error),
                )
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _MAX_PAUSE)
            return
        previous, self._failed = self._served, None
        self._served = made
        url = f"http://{shown_address((address[0], port))}"
        page = f"the page {url}/"
        if not (loopback or self._token.wanted):
            page = "no page: at this address it needs page_token_file"
        log.info("serving %s/healthz, %s/readyz and %s", url, url, page)
        if previous is not None:
            previous.listener.close()

    def _serve(self, address: Address, listening: socket.socket, *, loopback: bool) -> _Served:
        from refresher.daemon.http_listener import Listener
        from refresher.daemon.live_grants import LiveGrants
        from refresher.daemon.pages import public_app

        live = LiveGrants(lambda: self.store())
        app = public_app(self._sources(), live, self._token, loopback=loopback)
        return _Served(address, Listener(listening, app, "http"), live)

    def _keep_private(self, path: Path) -> None:
        from refresher.daemon.http_listener import Listener
        from refresher.daemon.pages import private_app

        if self._private is not None:
            private, listener = self._private
            if private.path == path and private.in_place() and listener.is_alive():
                return
            self._private = None
            listener.close()
            private.remove()
        if self._closed:  # the imports above take a while
            return
        try:
            private = PrivateSocket(path)
            self._private = private, Listener(private.socket, private_app(self._sources()), "http-private")
            if self._closed:  # either this sees the end, or the end sees the socket
                private.remove()
        except FileExistsError:
            return  # another daemon serves there; when it ends, this one does
        except (OSError, RuntimeError) as error:
            if self._problem != (problem := (path, _reason(error))):
                self._problem = problem
                log.info("cannot listen on %s: %s; 'refresher health' uses the address of --listen instead", *problem)
            return
        self._problem = None

    def _sources(self) -> "Sources":
        from refresher.daemon.pages import Sources

        return Sources(settings=lambda: self._wanted, health=self._health, metrics=self.metrics, history=self.history)


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens at ``address``. Raises ``OSError``."""
    listening = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
