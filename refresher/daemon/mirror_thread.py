"""The thread that publishes on this host what a database holds, and takes demands there, until it is stopped."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from refresher.common.errors import RefresherError
from refresher.daemon.log_throttle import LogThrottle
from refresher.daemon.readiness import Readiness
from refresher.operations.mirror import Mirror
from shim._token import TokenFile

if TYPE_CHECKING:
    from refresher.storage.postgres.postgres_store import PostgresStore

__all__ = ["MirrorThread"]

log = logging.getLogger(__name__)

_POLL: Final = 0.5
_DEMANDS_POLL: Final = 0.2
_LONGEST_PAUSE: Final = 10.0


class MirrorThread:
    """Keeps the token files of this host equal to those in the database of ``store``.

    ``changed`` is called with each name that is published.
    """

    def __init__(
        self,
        store: "PostgresStore",
        readiness: Readiness,
        changed: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        from refresher.storage.postgres.changes import Changes, Listener

        self._readiness = readiness
        self._changed = changed
        self._mirror = Mirror(
            store.database, Changes(store.database), store.publisher, store.mirrors, self._note, self._note_unreadable
        )
        self._place = store.database.place
        self._wakes = threading.Event()
        self._stopped = threading.Event()
        self._listener = Listener(store.database, self._wakes.set)
        self._throttle = LogThrottle()
        self.problem: str | None = None
        """Why nothing was published or taken in the last round; ``None``: all went well."""

    def start(self) -> None:
        """Start the thread, and the one that listens to the database."""
        for target in (self._run, self._listener.run):
            threading.Thread(target=target, name="mirror", daemon=True).start()

    def stop(self) -> None:
        """End the threads; they are not waited for, because their database may not answer."""
        self._stopped.set()
        self._listener.stop()
        self._wakes.set()

    def _note(self, name: str, token: TokenFile | None) -> None:
        self._changed((name,))
        if token is None:
            self._readiness.forget(name)
        else:
            self._readiness.update_copy(token)

    def _note_unreadable(self, name: str, there: TokenFile | None, why: str) -> None:
        self._changed((name,))
        if there is not None and self._readiness.state(name) is None:
            self._readiness.update_copy(there)  # published before this process began, perhaps with another key
        self._readiness.mark_unreadable(name, why)

    def _run(self) -> None:
        pause, publish_at = _DEMANDS_POLL, float("-inf")
        while not self._stopped.is_set():
            try:
                if self._wakes.is_set() or time.monotonic() >= publish_at:
                    self._wakes.clear()
                    self._mirror.publish()
                    publish_at = time.monotonic() + _POLL
                    self._readiness.mark_complete()
                self._mirror.take_demands()
                if self.problem is not None:
                    log.warning("%s is back: tokens are published and demands are taken again", self._place)
                    self._throttle.forget("")
                self.problem, pause = None, _DEMANDS_POLL
            except RefresherError as error:
                self.problem, pause = str(error), min(2 * pause, _LONGEST_PAUSE)
                message = f"{error}: agents keep the tokens that they have, and their demands wait"
                self._throttle.log("", f"away {error}", logging.ERROR, message)
            except Exception as error:  # noqa: BLE001  an internal error must not end the publication
                self._throttle.log_internal_error("", error)
                pause = min(2 * pause, _LONGEST_PAUSE)
            # A change wakes it; a demand is found by the next round.
            self._wakes.wait(pause)
