"""Simulated clocks: a test sets them, suspends the machine and reboots it at each step, without waiting."""

from typing import Literal, NamedTuple

from refresher.common.clocks import Moment
from tests.support.samples import NOON

__all__ = ["DAY", "EPSILON", "HOUR", "MINUTE", "Happening", "SimulatedClock"]

MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
EPSILON = 0.01
"""The rounding error of epoch seconds."""


class Happening(NamedTuple):
    """A change of the clocks: seconds that pass, that pass while suspended, or by which the wall clock is set."""

    what: Literal["passes", "sleeps", "is set"] = "passes"
    seconds: float = 0.0


class SimulatedClock:
    """The clocks of one machine, and the true time ``t`` in seconds since noon."""

    def __init__(self, *, knows_boot: bool) -> None:
        self.t = 0.0
        self.shift = 0.0
        """The seconds by which the wall clock is ahead of the true time, which is that of the server."""
        self.knows_boot = knows_boot
        self._boots = 1
        self._booted_at = -5000.0
        self._asleep = 0.0
        self._true: dict[Moment, float] = {}

    def read(self) -> Moment:
        """Return the current moment for the product."""
        boottime = self.t - self._booted_at
        monotonic = boottime - self._asleep
        moment = Moment(
            wall=NOON + self.t + self.shift,
            monotonic=monotonic,
            # macOS has neither a boot id nor a clock that counts a suspended machine.
            boottime=boottime if self.knows_boot else monotonic,
            boot_id=f"boot-{self._boots}" if self.knows_boot else "",
        )
        self._true[moment] = self.t
        return moment

    def happen(self, happening: Happening) -> None:
        """Apply a change of the clocks."""
        if happening.what == "is set":
            self.shift += happening.seconds
            return
        self.t += abs(happening.seconds)
        if happening.what == "sleeps":
            self._asleep += abs(happening.seconds)

    def reboot(self, seconds: float) -> None:
        """Switch the machine off for ``seconds``."""
        self.t += seconds
        self._boots += 1
        self._booted_at, self._asleep = self.t, 0.0

    def true(self, moment: Moment) -> float:
        """Return the true time at which a moment was read."""
        return self._true[moment]

    def gained(self, since: Moment, until: Moment) -> float:
        """Return the seconds by which the wall clock was set ahead between two moments; negative: back."""
        return (until.wall - since.wall) - (self.true(until) - self.true(since))
