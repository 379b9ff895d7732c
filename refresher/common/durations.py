"""Parse durations such as ``30s``."""

import math
from typing import Final

__all__ = ["parse"]

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(value: float | str) -> float:
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
