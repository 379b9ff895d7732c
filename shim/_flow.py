"""The authorization of one request, without any HTTP library: attach the token, and recover from a 401.

``flow`` yields ``Send`` and ``Wait``. Its driver does both for one HTTP library, and passes the responses in.
"""

import re
import time
from collections.abc import Generator, Iterable
from typing import NamedTuple

from shim._changes import verdict
from shim._source import FileTokenSource
from shim.errors import TokenRejected

__all__ = ["DEFAULT_WAIT", "Response", "Send", "Step", "Wait", "flow"]

DEFAULT_WAIT = 15.0
"""Seconds that the requests of one rejected token wait for a newer token."""

_MAX_SENDS = 4
_FIRST_POLL = 0.02
_LONGEST_POLL = 0.25

# The possessive quantifier keeps the match linear, so that a hostile header cannot cost seconds.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|$)', re.DOTALL)
_SCHEME = re.compile(r"\s*([^\s=,]+)(?:\s+[^\s=]|\s*$)")


class Send(NamedTuple):
    """Send the request with this ``Authorization`` header, or unchanged if it is ``None``."""

    authorization: str | None


class Wait(NamedTuple):
    """Wait, and hold no connection meanwhile."""

    seconds: float


Step = Send | Wait


class Response(NamedTuple):
    """The status of a response, its ``WWW-Authenticate`` headers, and the ``Authorization`` of the request it answers.

    After a redirect to another origin, that is not the ``Authorization`` of the ``Send``.
    """

    status: int
    challenges: tuple[str, ...]
    authorization: str | None


def flow(
    source: FileTokenSource, origin: str, *, wait: float, replayable: bool, raise_errors: bool
) -> Generator[Step, Response | None, None]:
    """Yield the steps for one request to ``origin``; the driver answers each ``Send`` with a ``Response``.

    The caller of the HTTP library gets the last response. ``wait``: seconds that the requests of one rejected token
    wait for a newer one. ``replayable``: the body can be sent again. Raises a ``ShimError``, only if ``raise_errors``.
    """
    token = source.current()
    authorization = source.authorization(token, origin)
    if authorization is None or token is None:
        if raise_errors and (token is None or token.access_token is None) and (problem := source.problem()) is not None:
            raise problem
        yield Send(None)
        return
    deadline = None
    for count in range(1, _MAX_SENDS + 1):
        response = yield Send(authorization)
        if response is None or not _is_rejection(response, authorization):
            if response is not None and 200 <= response.status < 300 and response.authorization == authorization:
                source.accepted(token)
            return
        newest = source.current()
        if newest is not None and source.authorization(newest, origin) == authorization:
            rejected_at = source.rejected(token, origin)
            if not verdict(newest):
                source.demand(newest)
            now = time.monotonic()
            deadline = deadline or now + wait
            ends = min(rejected_at + wait, deadline) if replayable and count < _MAX_SENDS else now
            pause = _FIRST_POLL
            while now < ends and not verdict(newest) and source.authorization(newest, origin) == authorization:
                yield Wait(min(pause, ends - now))
                pause = min(2 * pause, _LONGEST_POLL)
                newest = source.current() or newest
                now = time.monotonic()
        newer = source.authorization(newest, origin)
        if newest is None or newer is None or newer == authorization or not replayable:
            break
        token, authorization = newest, newer
    if raise_errors:
        raise source.problem() or TokenRejected(f"{origin} rejects the token of {source.name} (401)")


def _is_rejection(response: Response, authorization: str) -> bool:
    """Whether a response rejects our token: a 401 to a request with our token, and no challenge for another scheme."""
    if response.status != 401 or response.authorization != authorization:
        return False
    schemes = set(_challenge_schemes(response.challenges))
    return not schemes or authorization.partition(" ")[0].lower() in schemes


def _challenge_schemes(challenges: Iterable[str]) -> Iterable[str]:
    """Return the schemes of ``WWW-Authenticate`` headers (RFC 9110 section 11.6.1) in lower case."""
    for header in challenges:
        for part in _QUOTED.sub('""', header).split(","):
            if match := _SCHEME.match(part):
                yield match[1].lower()
