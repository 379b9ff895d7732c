"""Times and names as people read and write them."""

import math
import time
from collections.abc import Sequence
from typing import Final

__all__ = ["clock_time", "names", "parse_duration", "span"]

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def names(of: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(of[:5]) + (f" and {len(of) - 5} more" if len(of) > 5 else "")


def span(seconds: float) -> str:
    """Return a duration in at most two units, as ``59 min`` or ``2 h 5 min``."""
    whole = round(abs(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{round(whole / 60)} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock_time(at: float, *, separator: str = " ") -> str:
    """Return an instant in local time with its offset, as ``2026-11-23 14:05:09+01:00``."""
    try:
        shown = time.strftime(f"%Y-%m-%d{separator}%H:%M:%S%z", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "beyond the calendar"
    return f"{shown[:-2]}:{shown[-2:]}"


def parse_duration(value: float | str) -> float:
    """Return seconds: a number, or digits with a unit as in ``30s``, ``10m``, ``8h``, ``1d``.

    Raises ``ValueError`` for anything else, for a negative duration, and for one of more than thirty years.
    """
    if isinstance(value, str):
        if value[-1:] not in _UNITS:
            raise ValueError("not a duration")
        value = float(value[:-1]) * _UNITS[value[-1]]
    if math.isnan(value) or not 0 <= value < 1e9:
        raise ValueError("not a duration")
    return value
