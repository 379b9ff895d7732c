"""``mirror``: the thread that publishes, and health probes, until a signal stops it."""

import logging
import threading
from typing import Final

from refresher.common import logs
from refresher.common.signals import DaemonSignals
from refresher.config import Settings
from refresher.daemon.mirror_thread import MirrorThread
from refresher.daemon.supervision import Supervision
from refresher.storage import startup_checks

__all__ = ["MirrorDaemon"]

log = logging.getLogger(__name__)


class MirrorDaemon:
    """Publishes the tokens of a database on this host until a signal stops it."""

    def __init__(self, settings: Settings, signals: DaemonSignals) -> None:
        self._settings: Final = settings
        self._signals = signals
        self._wakes = threading.Event()
        signals.wake = self._wakes.set
        self._supervision = Supervision()
        self._store = settings.open_database()
        self._supervision.endpoint.store = lambda: self._store
        self._mirror = MirrorThread(self._store, self._supervision.readiness)

    def run(self) -> int:
        """Publish until SIGINT or SIGTERM; return the exit code. Raises ``ConfigError`` and ``DirectoryError``."""
        settings, directories = self._settings, self._settings.directories
        if (trouble := directories.prepare()) is not None:
            log.warning("cannot accept demands from agents: %s", trouble)
        logs.setup(settings.log_format, settings.verbose + 1, nonblocking=True)
        log.info(
            "publishing %s of %s in %s", ", ".join(settings.mirror), self._store.database.place, directories.tokens
        )
        startup_checks.warn(directories, set())
        self._supervision.use(settings)
        self._mirror.start()
        while not self._signals():
            if self._signals.reload_requested():
                log.warning("mirror reads its configuration at its start only: start it again")
            self._supervision.heartbeat()
            self._wakes.wait(self._supervision.heartbeat_interval)
            self._wakes.clear()
        self._supervision.stopping("stopping")
        self._mirror.stop()
        self._supervision.endpoint.close()
        log.info("stopped")
        return 0
