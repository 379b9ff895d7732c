"""Recover from a rejected token: when to send a request, with which token, and how long to wait for a newer one."""

import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from shim._challenge import refusal_of
from shim._changes import permanent_error
from shim._source import FileTokenSource
from shim.errors import ShimError, TokenRejected

__all__ = ["DEFAULT_WAIT", "Answer", "recovery"]

DEFAULT_WAIT = 15.0
"""Seconds that the requests of one rejected token wait for a newer token."""

_MAX_SENDS = 4
_FIRST_POLL = 0.02
_LONGEST_POLL = 0.25


class Answer(NamedTuple):
    """What a server answered to a request, as far as it concerns the token."""

    status: int
    challenges: Sequence[str]
    """The values of ``WWW-Authenticate``."""


def recovery(
    source: FileTokenSource, origin: str, *, wait: float, replayable: Callable[[], bool]
) -> Generator[str | float | None, Answer | None, ShimError | None]:
    """Lead one request to ``origin`` through the rejections of its token.

    Yields the ``Authorization`` to send the request with, for its answer; or the seconds to wait, without a connection;
    or ``None``, once and alone, if there is no token for ``origin``. Returns why the last answer refuses the token,
    ``None`` if it does not. ``replayable``: whether the request can be sent again.
    """
    token = source.current()
    authorization = source.authorization(token, origin)
    if authorization is None or token is None:
        yield None
        return None
    source.prepare(token, origin)
    can_replay = replayable()
    deadline = None
    lacking: ShimError | None = None
    for count in range(1, _MAX_SENDS + 1):
        answer = yield authorization
        if answer is None:
            return None
        refusal = refusal_of(answer.status, answer.challenges, authorization)
        if refusal is None:
            if 200 <= answer.status < 300:
                source.accepted(token)
            return None
        newest = source.current()
        lacking = None
        if refusal.lacks_scope:
            source.lacks_scope(token, origin, refusal)
            lacking = refusal.as_error(source.name, origin)
        elif newest is not None and source.authorization(newest, origin) == authorization:
            rejected_at = source.rejected(token, origin)
            if not permanent_error(newest):
                source.demand(newest)
            now = time.monotonic()
            deadline = deadline or now + wait
            ends = min(rejected_at + wait, deadline) if can_replay and count < _MAX_SENDS else now
            pause = _FIRST_POLL
            while now < ends and not permanent_error(newest) and source.authorization(newest, origin) == authorization:
                yield min(pause, ends - now)
                pause = min(2 * pause, _LONGEST_POLL)
                newest = source.current() or newest
                now = time.monotonic()
        newer = source.authorization(newest, origin)
        if newest is None or newer is None or newer == authorization or not can_replay:
            break
        token, authorization = newest, newer
    return lacking or source.problem() or TokenRejected(f"{origin} rejects the token of {source.name}")
