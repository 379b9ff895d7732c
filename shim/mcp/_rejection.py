"""Whether a token may be sent: not for a while after a rejection, and not again if a person must act."""

import time
from typing import NamedTuple

from shim._backoff import backoff
from shim._changes import permanent_error
from shim._source import FileTokenSource, valid_for
from shim.errors import ShimError, TokenRejected, TokenUnavailable
from shim.mcp._connection import Connection
from shim.mcp._endpoint import Endpoint

__all__ = ["TokenGate"]

_FIRST_COOL_DOWN = 5.0
_LONGEST_COOL_DOWN = 60.0


class _Rejection(NamedTuple):
    """A rejected token: how many ``times`` in a row, and until when it is not sent again (monotonic)."""

    access_token: str | None
    problem: ShimError
    times: int
    at: float
    until: float


class TokenGate:
    """Decides whether the token of ``source`` may be sent to ``endpoint``.

    A rejected token is sent again after a cool-down: the rejection may concern one call only, or the server may be
    faulty.
    """

    def __init__(self, endpoint: Endpoint, source: FileTokenSource) -> None:
        self._endpoint = endpoint
        self._source = source
        self._rejection: _Rejection | None = None

    def problem(self) -> ShimError | None:
        """Return why no token may be sent now; ``None`` if one may be sent."""
        token = self._source.current()
        if token is None or token.access_token is None:
            return self._source.problem() or TokenUnavailable(f"there is no token of {self._source.name} yet")
        if self._endpoint.origin not in (None, *token.origins):
            return TokenUnavailable(
                f"the token of {token.name} is valid for {', '.join(token.origins)}, but not for {self._endpoint.name}"
            )
        rejection = self._rejection
        if rejection is None or rejection.access_token != token.access_token:
            return None
        return permanent_error(token) or (rejection.problem if time.monotonic() < rejection.until else None)

    def is_outdated(self, connection: Connection) -> bool:
        """Whether ``connection`` is to be replaced because its process has an older token.

        While a call is under way, the next process cannot start. So the process takes new calls until then, as long as
        its token is good and the grant exists.
        """
        if not self._endpoint.is_process:
            return False
        newest = self._source.current()
        if newest is None or newest.access_token is None:
            return True
        if newest.access_token == connection.access_token:
            return False
        is_good = not connection.token_is_bad and valid_for(connection.token) > 0
        return not (connection.is_busy and is_good and permanent_error(newest) is None)

    def reject(self, sent_at: float, problem: ShimError | None = None) -> ShimError:
        """Record that the newest token was rejected in a request of ``sent_at``; return the error for its caller.

        ``problem``: the default is that of the source.
        """
        token = self._source.current()
        access_token = None if token is None else token.access_token
        problem = problem or self._source.problem()
        problem = problem or TokenRejected(f"{self._endpoint.name} rejects the token of {self._source.name}")
        now, last = time.monotonic(), self._rejection
        if last is None or last.access_token != access_token:
            self._rejection = _Rejection(access_token, problem, 0, now, now)
        elif sent_at > last.at:  # calls that were under way together count as one rejection
            cool_down = backoff(last.times, _FIRST_COOL_DOWN, _LONGEST_COOL_DOWN, jitter=0.25)
            self._rejection = _Rejection(access_token, problem, last.times + 1, now, now + cool_down)
        return problem

    def accept(self) -> None:
        """Record that the server accepts the token."""
        self._rejection = None

    def cool_down(self) -> float | None:
        """Return the seconds before a rejected token is sent again; ``None`` if no token is rejected."""
        return None if self._rejection is None else max(self._rejection.until - time.monotonic(), 0.0)
