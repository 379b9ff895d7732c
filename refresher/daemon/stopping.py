"""The end of ``run``: wait until the running rotations have finished, because a kill could lose a refresh token."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from refresher.common import text
from refresher.common.signals import DaemonSignals
from refresher.daemon.supervision import Supervision
from refresher.observers.hub import Observers

__all__ = ["stop"]

log = logging.getLogger(__name__)

_TIME_TO_OBSERVE: Final = 5.0
_LEAST_TO_OBSERVE: Final = 0.5


def stop(
    running: Callable[[], Sequence[str]],
    process_events: Callable[[], None],
    *,
    supervision: Supervision,
    observers: Observers,
    signals: DaemonSignals,
    sent: Collection[str],
    grace: float,
) -> int:
    """Wait for the rotations of the names ``running``, and end; return the exit code of ``run``.

    ``process_events`` waits for some of their events. ``sent``: the names whose refresh token was sent and whose answer
    is not saved yet. ``grace``: seconds after which this warns, and waits on.
    """
    status = f"stopping: waiting for {text.names(running())} to finish" if running() else "stopping"
    supervision.stopping(status)
    if running():
        log.info("%s", status)
    ends = stop_by = time.monotonic() + grace
    while names := running():
        process_events()
        supervision.extend_stop()
        if signals.stop_repeated():
            log.warning("%s: still rotating; %s", text.names(names), _loss("a kill now could lose", sent))
        if time.monotonic() > ends:
            ends = float("inf")
            log.critical(
                "%s: not saved within the grace period of %s; %s",
                text.names(names),
                text.span(grace),
                _loss("a kill now loses", sent),
            )
    # What happened is observed within the grace period too; another signal ends the wait.
    observers.close(min(_TIME_TO_OBSERVE, max(stop_by - time.monotonic(), _LEAST_TO_OBSERVE)), signals.stop_repeated)
    supervision.endpoint.close()
    supervision.gateway.wait(max(stop_by - time.monotonic(), 0.0))
    log.info("stopped")
    return 0


def _loss(loses: str, sent: Collection[str]) -> str:
    """Return what a kill would lose now: nothing, unless a refresh token was sent and its answer is not saved."""
    if not (at_risk := sorted(set(sent))):  # a copy: other threads change it
        return "nothing was sent, so nothing is lost"
    return f"{loses} a new refresh token of {text.names(at_risk)}"
