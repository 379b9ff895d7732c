"""Warns of client certificates that end, once a day for each grant."""

import logging
import threading
import time
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
        self._named.pop(name, None)

    def check(self) -> None:
        """Read the certificates in a thread, if it is time; it may hang in a file system. Never waits."""
        now = time.monotonic()
        if not self._named or now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + _INTERVAL
        self._thread = threading.Thread(target=self._warn, args=(dict(self._named),), name="certificates", daemon=True)
        self._thread.start()

    def _warn(self, named: dict[str, _Named]) -> None:
        for name, (path, generation) in named.items():
            at, now = certificates.end_in(path), clocks.now()
            if at is None or at - now.wall >= ENDS_SOON:
                continue
            if time.monotonic() - self._warned.get((name, path), float("-inf")) < _AGAIN:
                continue
            self._warned[name, path] = time.monotonic()
            log.warning("%s: %s", name, message := certificate_ends(name, path, at, now))
            self._emit(happened(name, "login_ending", message, generation=generation))
