"""Times and names as text for a person."""

import time
from collections.abc import Sequence

__all__ = ["clock_time", "names", "one_line", "printable", "span"]


def names(of: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(of[:5]) + (f" and {len(of) - 5} more" if len(of) > 5 else "")


def printable(text: str) -> str:
    """Return a text of a server or a program without control characters, which could change what a terminal shows."""
    return "".join(char if char.isprintable() else " " for char in text)


def one_line(text: str) -> str:
    """Return such a text in one line, with one space between its words."""
    return " ".join(printable(text).split())


def span(seconds: float) -> str:
    """Return a duration in at most two units, for example ``59 min``, ``2 h 5 min`` or ``3 d``."""
    whole = round(abs(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{round(whole / 60)} min"
    if whole < 172_800:
        large, small = f"{whole // 3600} h", f" {whole % 3600 // 60} min"
    else:
        large, small = f"{whole // 86400} d", f" {whole % 86400 // 3600} h"
    return large if small.startswith(" 0 ") else large + small


def clock_time(at: float, *, separator: str = " ") -> str:
    """Return an instant in local time with its offset, for example ``2026-11-23 14:05:09+01:00``."""
    try:
        shown = time.strftime(f"%Y-%m-%d{separator}%H:%M:%S%z", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "beyond the calendar"
    return f"{shown[:-2]}:{shown[-2:]}"
