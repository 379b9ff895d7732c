"""What a daemon tells those who watch over it: probes over HTTP, and systemd."""

import time
from typing import Final

from refresher.addresses import Address
from refresher.daemon.health import Health
from refresher.daemon.health_endpoint import Listener
from refresher.daemon.readiness import Freshness
from refresher.daemon.systemd import Notify

__all__ = ["Vitals"]

_BEAT_EACH: Final = 5.0
_LONGEST_SILENCE: Final = 60.0
_PLEA: Final = 10.0


class Vitals:
    """Told by the daemon's own thread; only ``health`` is asked by others."""

    def __init__(self) -> None:
        self.freshness: Final = Freshness()
        self._beat_at = float("-inf")
        self._notify = Notify()
        self._listener: Listener | None = None
        self._ready = False
        # Three times within what systemd waits for: one that comes late shall not end anything.
        self.beat_each: Final = min(_BEAT_EACH, (self._notify.watchdog or _BEAT_EACH * 3) / 3)
        """Seconds between two beats."""

    def health(self) -> Health:
        """Return how it is now."""
        return self.freshness.health(live=time.monotonic() - self._beat_at < _LONGEST_SILENCE)

    def listen(self, address: Address | None) -> None:
        """Answer at ``address`` and nowhere else. Raises ``ConfigError``, and then nothing is changed."""
        before = self._listener
        if address == (None if before is None else before.address):
            return
        self._listener = None if address is None else Listener(address, self.health)
        if before is not None:
            before.close()

    @property
    def url(self) -> str | None:
        """Where it answers."""
        return None if self._listener is None else self._listener.url

    def beat(self) -> None:
        """Tell that the loops have turned once; the first time, that it is ready."""
        self._beat_at = time.monotonic()
        status = self.health().in_words()
        if self._ready:
            self._notify.alive(status)
        else:
            self._ready = True
            self._notify.ready(status)

    def reloading(self) -> None:
        """Tell that the configuration is read again; the next beat tells that this is over."""
        self._notify.reloading()
        self._ready = False

    def stopping(self, status: str) -> None:
        """Tell that nothing new is begun."""
        self._ready = True
        self._notify.stopping(status)

    def finishing(self) -> None:
        """Tell that the end of what was begun is waited for: killed now, it would lose a token."""
        self._beat_at = time.monotonic()
        self._notify.extend(_PLEA)
