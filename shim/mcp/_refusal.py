"""For how long a token that was refused is not sent again: it may have been about one call, or the server's mistake."""

import random
import time
from typing import NamedTuple

from shim.errors import ShimError

__all__ = ["Refusal", "refused"]

_FIRST_COOL_DOWN = 5.0
_LAST_COOL_DOWN = 60.0


class Refusal(NamedTuple):
    """A token that was refused to the end, so many times in a row; until then it is not sent (monotonic seconds)."""

    access_token: str | None
    problem: ShimError
    times: int
    at: float
    until: float


def refused(access_token: str | None, problem: ShimError, since: float, known: Refusal | None) -> Refusal:
    """Return what is known after a request of ``since`` (monotonic seconds) was refused, and ``known`` before."""
    now = time.monotonic()
    if known is None or known.access_token != access_token:
        return Refusal(access_token, problem, 0, now, now)
    if since <= known.at:
        return known  # any number of calls that were under way together are refused once
    # Others hold this token, too: they must not come back together.
    pause = min(_FIRST_COOL_DOWN * 2.0 ** min(known.times, 8), _LAST_COOL_DOWN) * (0.75 + random.random() / 2)  # noqa: S311
    return Refusal(access_token, problem, known.times + 1, now, now + pause)
