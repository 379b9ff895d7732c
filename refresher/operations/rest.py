"""Which grants ``run-once`` need not read, because nothing has changed since it read them and they are not due."""

from typing import Final

from refresher.common import clocks
from refresher.grants import refresh_life
from refresher.grants.policy import Wait
from refresher.grants.record import Grant
from refresher.operations.result import Result
from refresher.storage import rest_index, stamps
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Listing
from refresher.storage.rest_index import Rest

__all__ = ["Resting"]

_MARGIN: Final = 2.0
"""Seconds: more than the clocks may differ from the time of the index."""

_MOST_MISSING: Final = 1 / 16
"""Up to this part of the grants, reading them again costs less than writing the index."""


class Resting:
    """The grants that need nothing, by the index and by what is read now.

    Only grants whose decision depends on nothing but the time are in it: healthy ones, without an end that
    needs a person.
    """

    def __init__(self, directories: Directories, listing: Listing, demands: Demands) -> None:
        self._directories = directories
        self._listing = listing
        self._demands = demands
        self._now = clocks.now()
        self._stamps = stamps.find_all(directories)  # first: what changes after that has another stamp
        self._known = rest_index.load(directories, listing.sharing, self._now)
        self._rests: dict[str, Rest] = {}
        self._added = 0

    def find(self, name: str, horizon: float) -> Result | None:
        """Return the result of a grant that needs nothing; ``None`` if it must be read."""
        rest = self._known.get(name)
        if (
            rest is None
            or rest.stamp != self._stamps.by_name.get(name)
            or rest.due <= self._now.wall + horizon + _MARGIN
            or name in self._listing.unfinished
            or name in self._demands.by_name
            or not self._demands.complete
        ):
            return None
        self._rests[name] = rest
        return Result.at_rest(name, rest.generation, rest.due)

    def add(self, grant: Grant, decision: Wait) -> None:
        """Note a grant that was read and needs nothing now."""
        name = grant.name
        stamp = self._stamps.by_name.get(name)
        if stamp is None or name in self._stamps.unsettled or name in self._demands.by_name:
            return
        if decision.reason != "not_due" or decision.until is None or not grant.renewable:
            return
        if grant.assertion is not None and grant.assertion.sources:
            return  # it needs something too when they change
        if grant.client_cert is not None or refresh_life.next_end(grant, self._now) is not None:
            return
        if (grant.failure, grant.doubt, grant.token_rejected, grant.not_before, grant.login_ends_at) == (None,) * 5:
            self._rests[name] = Rest(stamp, grant.generation, decision.until)
            self._added += 1

    def save(self) -> None:
        """Write the index, if that helps the next run."""
        if self._added > _MOST_MISSING * len(self._rests):
            rest_index.save(self._directories, self._listing.sharing, self._now, self._rests)
