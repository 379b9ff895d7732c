"""Handing out one access token, for commands that print it: rotate first where that is needed and may be done."""

import os
import time
from collections.abc import Callable
from typing import Final

from refresher.common import text
from refresher.common.errors import GrantFileError, Interrupted, NeedsPerson, NotInTime, UnknownName
from refresher.config import Settings
from refresher.grants.policy import Rest
from refresher.grants.record import Grant
from refresher.operations import explanation
from refresher.operations.inspection import look
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage import demands, records
from refresher.storage.directories import Directories
from shim import FileTokenSource
from shim._changes import verdict
from shim._source import is_last, valid_for
from shim._token import TokenFile, is_name

__all__ = ["hand_out"]

_LEAST: Final = 10.0
_LOOK_AGAIN: Final = 0.1


def hand_out(
    settings: Settings,
    name: str,
    *,
    min_valid: float | None,
    wait: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None] = lambda _: None,
) -> TokenFile:
    """Return the token file of ``name``, whose access token has at least ``min_valid`` seconds to live.

    ``min_valid`` is by default 10, or a quarter of a shorter life. Where less is left, rotates by itself what is this
    user's, and else demands; waits up to ``wait`` seconds for somebody else. Raises ``NeedsPerson``, ``NotInTime``,
    ``UnknownName``, ``GrantFileError``, ``DirectoryError`` and ``Interrupted``.
    """
    if not is_name(name):
        raise UnknownName(f"{name!r} is no name of a grant")
    directories = settings.directories
    source = FileTokenSource(name, tokens_dir=directories.tokens, demands_dir=directories.demands)
    ends = time.monotonic() + wait
    first = _generation(source.current())
    while True:
        token = source.current()
        least = _least(token, min_valid)
        if token is not None:
            if token.access_token is not None and valid_for(token) >= least:
                return token
            if (final := verdict(token)) is not None and not _may_mend(directories, name):
                raise NeedsPerson(str(final))
            life = _life(token)
            if life < least and (token.generation > first or _is_full(directories, token)):
                # Another one would not live any longer.
                raise NotInTime(
                    f"the tokens of {name} live {text.span(life)}, and --min-valid asks for {text.span(least)}"
                )
            if not is_last(token):
                source.demand(token)
        if stopping():
            raise Interrupted(f"interrupted while waiting for a token of {name}; nothing is lost")
        remaining = ends - time.monotonic()
        result = _rotated(settings, name, token is not None, max(remaining, _LOOK_AGAIN), stopping)
        if result is not None and result.outcome in ("rotated", "adopted"):
            continue
        if result is not None and result.outcome == "reauthorization_required":
            raise NeedsPerson(f"{name}: {result.detail}")
        if remaining <= 0:
            raise NotInTime(_problem(source, result, least))
        waiting([name])
        time.sleep(min(_LOOK_AGAIN, remaining))


def _problem(source: FileTokenSource, result: Result | None, least: float) -> str:
    if result is not None and EXIT_CODES[result.outcome] != 0:
        return f"{result.name}: {result.outcome}: {result.detail}"
    known = source.problem()
    if known is not None:
        return str(known)
    return (
        f"the token of {source.name} has less than {least:g} s to live, and no newer one came; does a refresher run? "
        "(Under cron, give it --wait 70s)"
    )


def _is_full(directories: Directories, token: TokenFile) -> bool:
    """Whether the life of a token is what its server gives, and not what was left of it at an import."""
    grant = _grant(directories, token.name)
    return grant is not None and grant.last_rotation_at == token.issued_at


def _may_mend(directories: Directories, name: str) -> bool:
    """Whether a grant that was refused again and again, but is not dead, can be tried once more by this user."""
    grant = _grant(directories, name)
    return grant is not None and not grant.dead


def _grant(directories: Directories, name: str) -> Grant | None:
    if not _is_ours(directories):
        return None
    try:
        record = records.load(directories, name).record
    except GrantFileError:
        return None
    return record if isinstance(record, Grant) else None


def _rotated(
    settings: Settings, name: str, published: bool, lock_wait: float, stopping: Callable[[], bool]
) -> Result | None:
    """Rotate ``name`` if it is this user's and to be rotated; ``None`` where it is not this user's."""
    directories = settings.directories
    if not _is_ours(directories):
        return None
    listing = directories.listing()
    if name not in listing.names and name not in listing.unfinished:
        if published:
            return None  # of another state directory
        raise records.unknown(directories, name)
    seen = look(directories, name, unfinished=name in listing.unfinished, asked=demands.pending(directories))
    if seen.needs_lock:
        from refresher.operations.rotate import Order, Terms, rotate  # httpx, only where there is something to exchange

        terms = Terms(ca_file=settings.ca_file, stopping=stopping, lock_wait=lock_wait)
        return rotate(directories, Order(name=name, seen=seen.generation), terms)
    if isinstance(seen.record, Grant) and isinstance(seen.decision, Rest):
        return explanation.rested(seen.record, seen.decision)
    return None


def _is_ours(directories: Directories) -> bool:
    """Whether the grants are this user's; wrong modes on what is are told later."""
    try:
        return directories.grants.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _least(token: TokenFile | None, min_valid: float | None) -> float:
    if min_valid is not None:
        return min_valid
    return _LEAST if token is None else min(_LEAST, _life(token) / 4)


def _generation(token: TokenFile | None) -> int:
    return -1 if token is None else token.generation


def _life(token: TokenFile) -> float:
    return float("inf") if token.expires_at is None else max(token.expires_at - token.issued_at, 0.0)
