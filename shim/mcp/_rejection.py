"""Whether the token there is may be sent: one that was refused is not for a while, one with a verdict not at all."""

import random
import time
from typing import NamedTuple

from shim._changes import verdict
from shim._source import FileTokenSource
from shim.errors import ShimError, TokenRejected, TokenUnavailable
from shim.mcp._endpoint import Target

__all__ = ["Refusals"]

_FIRST_COOL_DOWN = 5.0
_LAST_COOL_DOWN = 60.0


class _Refusal(NamedTuple):
    """A token that was refused to the end, so many times in a row; until then it is not sent (monotonic seconds)."""

    access_token: str | None
    problem: ShimError
    times: int
    at: float
    until: float


class Refusals:
    """What ``target`` has said to the token of ``source``; it may have been about one call, or the server's mistake."""

    def __init__(self, target: Target, source: FileTokenSource) -> None:
        self._target = target
        self._source = source
        self._known: _Refusal | None = None

    def problem(self) -> ShimError | None:
        """Return what nobody here can mend: without a new token there is nothing to send."""
        token = self._source.current()
        if token is None or token.access_token is None:
            return self._source.problem() or TokenUnavailable(f"there is no token of {self._source.name} yet")
        if not self._target.takes(token):
            return TokenUnavailable(
                f"the token of {token.name} is for {', '.join(token.origins)}, and not for {self._target.name}"
            )
        known = self._known
        if known is None or known.access_token != token.access_token:
            return None
        # With a verdict it is over; without one the server may think better of it.
        return verdict(token) or (known.problem if time.monotonic() < known.until else None)

    def refused(self, since: float) -> ShimError:
        """Note that a request of ``since`` was refused with the newest token; return what to tell its caller."""
        token = self._source.current()
        problem = self._source.problem()
        if problem is None:
            problem = TokenRejected(f"{self._target.name} refuses the token of {self._source.name} (401)")
        self._known = _beyond(self._known, None if token is None else token.access_token, problem, since)
        return problem

    def forget(self) -> None:
        """Note that the token is taken."""
        self._known = None

    def remaining(self) -> float | None:
        """Return the seconds for which a refused token is not sent; ``None`` where none was refused."""
        return None if self._known is None else max(self._known.until - time.monotonic(), 0.0)


def _beyond(known: _Refusal | None, access_token: str | None, problem: ShimError, since: float) -> _Refusal:
    now = time.monotonic()
    if known is None or known.access_token != access_token:
        return _Refusal(access_token, problem, 0, now, now)
    if since <= known.at:
        return known  # any number of calls that were under way together are refused once
    # Others hold this token, too: they must not come back together.
    pause = min(_FIRST_COOL_DOWN * 2.0 ** min(known.times, 8), _LAST_COOL_DOWN) * (0.75 + random.random() / 2)  # noqa: S311
    return _Refusal(access_token, problem, known.times + 1, now, now + pause)
