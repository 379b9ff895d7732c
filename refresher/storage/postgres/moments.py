"""The moments in a record, by the clock of the database.

Hosts have different boots. So a record in the database counts by the database's clock, and each host converts what it
reads to its own clocks: the seconds that passed are the same. Then the policy is the same on each host.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from refresher.common.clocks import Moment
from refresher.grants.record import Grant, Moved, Record

__all__ = ["Clocks"]

_BOOT: str = "postgresql:"


class Clocks(NamedTuple):
    """One instant by the clocks of this host and of the database."""

    here: Moment
    database: float
    """Epoch seconds."""
    server: str
    """The system identifier of the database."""

    @property
    def difference(self) -> float:
        """By how many seconds the wall clock of this host is ahead of the database's."""
        return self.here.wall - self.database

    def read(self, record: Record) -> Record:
        """Return a record of the database by the clocks of this host."""
        return _converted(record, self._to_host)

    def write(self, record: Record) -> Record:
        """Return a record of this host by the clock of the database."""
        return _converted(record, self._to_database)

    def at(self, database: float) -> Moment:
        """Return the moment of a time of the database, by the clocks of this host."""
        ago = self.database - database
        here = self.here
        return Moment(
            wall=here.wall - ago,
            monotonic=here.monotonic - ago,
            boottime=here.boottime - ago,
            boot_id=here.boot_id,
        )

    def _to_host(self, moment: Moment) -> Moment:
        if moment.boot_id != _BOOT + self.server:
            return moment
        return msgspec.structs.replace(self.at(moment.boottime), wall=moment.wall)

    def _to_database(self, moment: Moment) -> Moment:
        if not moment.same_boot(self.here):
            return moment
        then = self.database - moment.seconds_until(self.here)
        return Moment(wall=moment.wall, monotonic=then, boottime=then, boot_id=_BOOT + self.server)


def _converted(record: Record, convert: Callable[[Moment], Moment]) -> Record:
    if isinstance(record, Moved) and record.arriving is not None:
        return msgspec.structs.replace(record, arriving=_converted(record.arriving, convert))
    if not isinstance(record, Grant):
        return record
    issued, failure, doubt = record.issued, record.failure, record.doubt
    if failure is not None and failure.moment is not None:
        failure = msgspec.structs.replace(failure, moment=convert(failure.moment))
    if doubt is not None:
        doubt = msgspec.structs.replace(doubt, since=convert(doubt.since))
    return msgspec.structs.replace(
        record, issued=None if issued is None else convert(issued), failure=failure, doubt=doubt
    )
