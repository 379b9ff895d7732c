"""What a process that holds refresh tokens gives up: closed streams, wide file modes, core dumps (I7)."""

import os
import resource
import sys
from contextlib import suppress
from typing import Final

__all__ = ["harden"]

_PR_SET_DUMPABLE: Final = 4


def harden() -> None:
    """Open what was closed, make files private, and memory impossible to dump, also by a collector behind a pipe."""
    _open_standard_streams()
    os.umask(0o077)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # RLIMIT_CORE does not hold back a piped collector. ctypes costs 3 ms; there is no other way to prctl.
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _open_standard_streams() -> None:
    # Where a parent has closed one, the next file opened takes its number: a message to stderr would go into a grant.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  a descriptor, for the life of the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
