"""Which grants have a live access token that is published, as they were last looked at."""

import threading
import time
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from refresher.common import clocks
from refresher.daemon.health import Health
from refresher.grants import policy
from refresher.grants.record import Grant

__all__ = ["Freshness"]

_NAMED: Final = 100

_Needs = Literal["reauthorization_required", "invalid_grant_file"]


class _Seen(msgspec.Struct, frozen=True):
    """``until`` is the monotonic second at which the published token ends; ``needs`` is why a person is needed."""

    until: float
    needs: _Needs | None


class Freshness:
    """Written by the daemon's own thread, and asked by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._looked_around = False

    def looked_around(self) -> None:
        """Note that each grant has been looked at."""
        self._looked_around = True

    def see(self, grant: Grant, *, published: bool) -> None:
        """Note how a grant is; ``published``: readers see what its record says."""
        # Until a moment of the clock that nobody sets: where it was set, each grant is looked at anew.
        left = policy.life_left(grant, clocks.now()) if published and grant.access_token is not None else 0.0
        needs: _Needs | None = "reauthorization_required" if policy.needs_person(grant) else None
        with self._lock:
            self._seen[grant.name] = _Seen(time.monotonic() + left, needs)

    def cannot_read(self, name: str) -> None:
        """Note that the record of ``name`` cannot be read; the token that is published lives on."""
        with self._lock:
            before = self._seen.get(name)
            self._seen[name] = _Seen(float("-inf") if before is None else before.until, "invalid_grant_file")

    def forget(self, name: str) -> None:
        """Note that there is no grant of this name."""
        with self._lock:
            self._seen.pop(name, None)

    def health(self, *, live: bool) -> Health:
        """Return how it is now; ``live``: whether the loops turn."""
        now = time.monotonic()
        with self._lock:
            seen = dict(self._seen)
        waiting = [name for name, grant in seen.items() if grant.needs is None and grant.until <= now]
        return Health(
            live=live,
            ready=live and self._looked_around and not waiting,
            grants=len(seen),
            fresh=sum(grant.until > now for grant in seen.values()),
            waiting=_first(waiting),
            reauthorization_required=_needing(seen, "reauthorization_required"),
            invalid_grant_file=_needing(seen, "invalid_grant_file"),
        )


def _needing(seen: dict[str, _Seen], what: _Needs) -> tuple[str, ...]:
    return _first(name for name, grant in seen.items() if grant.needs == what)


def _first(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names)[:_NAMED])
