"""What happens around one request, without any HTTP library: attach, compare, demand, wait, send again.

The generator says ``Send`` and ``Wait``; whoever drives it does both, and gives back what the server answered.
"""

import re
import time
from collections.abc import Generator, Iterable
from typing import NamedTuple

from shim._changes import verdict
from shim._source import FileTokenSource
from shim.errors import TokenRejected

__all__ = ["WAIT", "Answer", "Send", "Step", "Wait", "flow"]

WAIT = 15.0
"""Seconds for which the requests of one refused token wait for the next one."""

_MOST_SENDS = 4
_FIRST_LOOK = 0.02
_LAST_LOOK = 0.25

# Possessive, and to the end where a quote never closes: a hostile header must not cost seconds.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|$)', re.DOTALL)
_SCHEME = re.compile(r"\s*([^\s=,]+)(?:\s+[^\s=]|\s*$)")


class Send(NamedTuple):
    """Send the request; with this ``Authorization`` header, or with ``None`` as it is."""

    authorization: str | None


class Wait(NamedTuple):
    """Wait, holding no connection."""

    seconds: float


Step = Send | Wait


class Answer(NamedTuple):
    """What came back: the status, the ``WWW-Authenticate`` headers, and the ``Authorization`` of the request answered.

    The last differs from what was sent where a redirect led to another origin.
    """

    status: int
    challenges: tuple[str, ...]
    carried: str | None


def flow(
    source: FileTokenSource, origin: str, *, wait: float, replayable: bool, raise_errors: bool
) -> Generator[Step, Answer | None, None]:
    """Take one request to ``origin`` through; the answer to each ``Send`` is sent in.

    Ends when the caller is to have the last answer. ``wait``: seconds for which a refused token's requests wait for
    the next. ``replayable``: the body can be sent again. Raises only with ``raise_errors``, and then a ``ShimError``.
    """
    token = source.current()
    authorization = source.authorization(token, origin)
    if authorization is None or token is None:
        if raise_errors and (token is None or token.access_token is None) and (problem := source.problem()) is not None:
            raise problem
        yield Send(None)
        return
    patience = None
    for count in range(1, _MOST_SENDS + 1):
        answer = yield Send(authorization)
        if answer is None or not _refused(answer, authorization):
            if answer is not None and 200 <= answer.status < 300 and answer.carried == authorization:
                source.accepted(token)
            return
        newer = source.current()
        if newer is not None and source.authorization(newer, origin) == authorization:
            since = source.rejected(token, origin)
            if not verdict(newer):
                source.demand(newer)
            now = time.monotonic()
            patience = patience or now + wait
            pause = _FIRST_LOOK
            until = min(since + wait, patience) if replayable and count < _MOST_SENDS else now
            while now < until and not verdict(newer) and source.authorization(newer, origin) == authorization:
                yield Wait(min(pause, until - now))
                pause = min(2 * pause, _LAST_LOOK)
                newer = source.current() or newer
                now = time.monotonic()
        fresh = source.authorization(newer, origin)
        if newer is None or fresh is None or fresh == authorization or not replayable:
            break
        token, authorization = newer, fresh
    if raise_errors:
        raise source.problem() or TokenRejected(f"{origin} refused the token of {source.name} (401)")


def _refused(answer: Answer, authorization: str) -> bool:
    """Whether an answer says that our token is no good: a 401 to a request that carried it, and no other business."""
    if answer.status != 401 or answer.carried != authorization:
        return False
    schemes = set(_schemes(answer.challenges))
    return not schemes or authorization.partition(" ")[0].lower() in schemes


def _schemes(challenges: Iterable[str]) -> Iterable[str]:
    """Return the schemes of ``WWW-Authenticate`` headers (RFC 9110 section 11.6.1) in lower case."""
    for header in challenges:
        for part in _QUOTED.sub('""', header).split(","):
            if match := _SCHEME.match(part):
                yield match[1].lower()
