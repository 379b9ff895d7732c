"""Warns of client certificates that end, once a day for each grant."""

import logging
import threading
import time
from contextlib import suppress
from typing import Final, NamedTuple

from refresher.common import clocks
from refresher.grants.forecast import ENDS_SOON
from refresher.grants.record import Grant
from refresher.operations import certificates
from refresher.operations.events import Emit, happened
from refresher.operations.result import certificate_ends

__all__ = ["CertificateWatch"]

log = logging.getLogger(__name__)

_INTERVAL: Final = 3600.0
_AGAIN: Final = 86400.0


class _Named(NamedTuple):
    path: str
    generation: int


class CertificateWatch:
    """The certificates of the grants that ``run`` has inspected. A thread of its own reads them, each hour."""

    def __init__(self, emit: Emit) -> None:
        self._emit: Final = emit
        self._named: Final[dict[str, _Named]] = {}
        self._warned: Final[dict[tuple[str, str], float]] = {}
        self._next = float("-inf")
        self._thread: threading.Thread | None = None

    def note(self, grant: Grant) -> None:
        """Remember the certificate of ``grant``, if it has one and no person must log in anyway."""
        if grant.client_cert is None or grant.dead:
            self.forget(grant.name)
        else:
            self._named[grant.name] = _Named(grant.client_cert, grant.generation)

    def forget(self, name: str) -> None:
        """Forget a grant that is removed."""
        if (of := self._named.pop(name, None)) is not None:
            self._warned.pop((name, of.path), None)

    def check(self) -> None:
        """Read the certificates in a thread, if it is time; it may hang in a file system. Never waits."""
        now = time.monotonic()
        if not self._named or now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        thread = threading.Thread(target=self._warn, args=(dict(self._named),), name="certificates", daemon=True)
        with suppress(RuntimeError):  # the system starts no more threads: the next heartbeat tries again
            thread.start()
            self._next, self._thread = now + _INTERVAL, thread

    def _warn(self, named: dict[str, _Named]) -> None:
        for name, of in named.items():
            try:
                self._warn_of(name, of)
            except Exception as error:  # noqa: BLE001  one certificate must not hide the others
                log.warning("%s: its certificate: internal error (%s); please report it", name, type(error).__name__)

    def _warn_of(self, name: str, of: _Named) -> None:
        at, now = certificates.end_in(of.path), clocks.now()
        if at is None or at - now.wall >= ENDS_SOON:
            return
        if time.monotonic() - self._warned.get((name, of.path), float("-inf")) < _AGAIN:
            return
        self._warned[name, of.path] = time.monotonic()
        log.warning("%s: %s", name, message := certificate_ends(name, of.path, at, now))
        self._emit(happened(name, "login_ending", message, generation=of.generation))
