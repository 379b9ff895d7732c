"""The time by each clock of the system, to measure durations across suspends and clock changes."""

import sys
import time
from functools import cache
from pathlib import Path

import msgspec

__all__ = ["Moment", "now"]


class Moment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instant by three clocks, in seconds; ``monotonic`` and ``boottime`` count from the boot ``boot_id``.

    The wall clock can be set. ``monotonic`` stops while the machine is suspended, ``boottime`` does not.
    """

    wall: float
    monotonic: float
    boottime: float
    boot_id: str

    def same_boot(self, other: "Moment") -> bool:
        """Whether both moments are certainly of one boot of one machine."""
        return self.boot_id != "" and self.boot_id == other.boot_id

    def seconds_until(self, other: "Moment") -> float:
        """Return the seconds to ``other`` by the boot clock; after a reboot, by the wall clock."""
        return other.boottime - self.boottime if self.same_boot(other) else other.wall - self.wall


def now() -> Moment:
    """Read the clocks."""
    if sys.platform == "linux":
        boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
    else:
        boottime = time.monotonic()
    return Moment(wall=time.time(), monotonic=time.monotonic(), boottime=boottime, boot_id=_boot_id())


@cache  # a process ends with its boot at the latest
def _boot_id() -> str:
    # Without one, every earlier moment counts as one before a reboot, which is the safe assumption.
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
