"""Obtain one valid access token for a command that prints it; refresh the grant first if necessary."""

import math
import os
import time
from collections.abc import Callable
from typing import Final

from refresher.common import text
from refresher.common.errors import GrantFileError, Interrupted, NeedsPerson, NotInTime, UnknownName
from refresher.config import Settings
from refresher.grants.policy import Wait
from refresher.grants.record import Grant
from refresher.operations.events import Emit, ignore
from refresher.operations.inspection import inspect
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage import demands, records
from refresher.storage.directories import Directories
from refresher.storage.publishing import Publisher
from shim import FileTokenSource
from shim._changes import permanent_error
from shim._source import may_be_last, valid_for
from shim._token import TokenFile, is_name

__all__ = ["obtain_token"]

_MIN_VALID: Final = 10.0
_POLL_INTERVAL: Final = 0.1


def obtain_token(
    settings: Settings,
    name: str,
    *,
    min_valid: float | None,
    wait: float,
    stopping: Callable[[], bool],
    progress: Callable[[list[str]], None] = lambda _: None,
    emit: Emit = ignore,
) -> TokenFile:
    """Return the token file of ``name``, with an access token that is valid for ``min_valid`` seconds.

    ``min_valid`` is 10 by default, or a quarter of a shorter lifetime. If the token expires earlier, this rotates the
    grant if it belongs to the current user, else demands a rotation; it waits up to ``wait`` seconds.

    Raises ``NeedsPerson``, ``NotInTime``, ``UnknownName``, ``GrantFileError``, ``DirectoryError`` and ``Interrupted``.
    """
    if not is_name(name):
        raise UnknownName(f"{name!r} is not a valid name of a grant")
    directories = settings.directories
    source = FileTokenSource(name, tokens_dir=directories.tokens, demands_dir=directories.demands)
    ends = time.monotonic() + wait
    first = source.current()
    while True:
        token = source.current()
        lifetime = math.inf if token is None or token.expires_at is None else max(token.expires_at - token.issued_at, 0)
        required = min(_MIN_VALID, lifetime / 4) if min_valid is None else min_valid
        if token is not None:
            if token.access_token is not None and valid_for(token) >= required:
                return token
            grant = _owned_grant(directories, name)
            if (error := permanent_error(token)) is not None and (grant is None or grant.dead):
                raise NeedsPerson(str(error))
            is_new = first is None or token.generation > first.generation
            # After an import, the lifetime is only what was left of it.
            is_whole = is_new or (grant is not None and grant.last_rotation_at == token.issued_at)
            if lifetime < required and is_whole:
                # A new token would not be valid any longer.
                raise NotInTime(
                    f"{name}: its tokens are valid for {text.span(lifetime)} when issued, and --min-valid is "
                    f"{text.span(required)}; use a smaller --min-valid"
                )
            if not may_be_last(token):
                source.demand(token)
        if stopping():
            raise Interrupted(f"{name}: interrupted while waiting for a token; nothing is lost")
        remaining = ends - time.monotonic()
        result = _rotate_if_owned(settings, name, token is not None, max(remaining, _POLL_INTERVAL), stopping, emit)
        if result is not None and result.outcome in ("rotated", "adopted"):
            continue
        known = -1 if token is None else token.generation
        if result is not None and result.outcome == "token_rejected" and (result.generation or 0) > known:
            continue  # it was rotated
        if result is not None and result.outcome == "reauthorization_required":
            raise NeedsPerson(f"{name}: {result.detail}")
        if remaining <= 0:
            raise NotInTime(_problem(source, result, required))
        progress([name])
        time.sleep(min(_POLL_INTERVAL, remaining))


def _problem(source: FileTokenSource, result: Result | None, required: float) -> str:
    if result is not None and EXIT_CODES[result.outcome] != 0:
        return f"{result.name}: {result.outcome}: {result.detail}"
    if (problem := source.problem()) is not None:
        return str(problem)
    return (
        f"{source.name}: no token that is valid for {required:g} s was published in time; is 'refresher run' running? "
        "'refresher doctor' checks it (with cron, use --wait 70s)"
    )


def _owned_grant(directories: Directories, name: str) -> Grant | None:
    """Return the grant if it belongs to the current user."""
    try:
        record = records.load(directories, name).record if _owns_grants(directories) else None
    except GrantFileError:
        return None
    return record if isinstance(record, Grant) else None


def _rotate_if_owned(
    settings: Settings, name: str, published: bool, lock_wait: float, stopping: Callable[[], bool], emit: Emit
) -> Result | None:
    """Rotate ``name`` if necessary; return ``None`` if the grant belongs to another user."""
    directories = settings.directories
    if not _owns_grants(directories):
        return None
    listing = directories.listing((name,))
    if name not in listing.all:
        if published:
            return None  # it belongs to another state directory
        raise records.unknown(directories, name)
    publisher = Publisher(directories)
    found = inspect(publisher, name, listing=listing, demands=demands.pending(directories, (name,)))
    if found.needs_lock:
        from refresher.operations.rotate import Order, Terms, rotate  # it loads httpcore, which most calls do not need

        terms = Terms(ca_file=settings.ca_file, stopping=stopping, lock_wait=lock_wait, emit=emit)
        return rotate(publisher, Order.after(found), terms)
    if isinstance(found.record, Grant) and isinstance(found.decision, Wait):
        return Result.from_decision(found.record, found.decision)
    return None


def _owns_grants(directories: Directories) -> bool:
    """Whether the current user owns ``grants/``; its permissions are checked later."""
    try:
        return directories.grants.stat().st_uid == os.geteuid()
    except OSError:
        return False
