"""Obtain one valid access token for a command that prints it; refresh the grant first if necessary."""

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from refresher.common import clocks, text
from refresher.common.errors import GrantFileError, Interrupted, NeedsPerson, NotInTime, UnknownName
from refresher.config import Settings
from refresher.grants.policy import Wait
from refresher.grants.record import Grant
from refresher.operations import names
from refresher.operations.detached_rotation import DetachedRotation
from refresher.operations.events import Emit
from refresher.operations.inspection import Inspection, inspect
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage import demands, records
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.publishing import Publisher
from shim import FileTokenSource
from shim._changes import permanent_error
from shim._source import may_be_last, valid_for
from shim._token import TokenFile, is_name

__all__ = ["obtain_token", "rotate_if_necessary"]

log = logging.getLogger(__name__)

_MIN_VALID: Final = 10.0
_POLL_INTERVAL: Final = 0.1
_START_INTERVAL: Final = 1.0
_DATABASE_INTERVAL: Final = 5.0
"""Seconds between two looks at a database; another host may rotate the grant meanwhile."""
_LONGEST_LOCK_WAIT: Final = 30.0
_NO_SPACE: Final = 64 * 1024
"""Bytes that a rotation needs."""


def obtain_token(
    settings: Settings,
    name: str,
    *,
    min_valid: float | None,
    wait: float,
    rotation: DetachedRotation,
    stopping: Callable[[], bool],
    progress: Callable[[list[str]], None] = lambda _: None,
    refusal: Callable[[TokenFile, float], str | None] = lambda _token, _left: None,
) -> TokenFile:
    """Return the token file of ``name``, with an access token that is valid for ``min_valid`` seconds.

    ``min_valid`` is 10 by default, or a quarter of a shorter lifetime. If the token expires earlier, this starts
    ``rotation`` if the grant belongs to the current user, else demands a rotation; it waits up to ``wait`` seconds.

    ``refusal`` gets a token and the seconds left, and returns the origin that refuses it, or ``None``. If the first
    token is refused, this demands and returns a newer one, else the refused one with a warning: the server may have had
    another reason.

    Raises ``NeedsPerson``, ``NotInTime``, ``UnknownName``, ``GrantFileError``, ``DirectoryError`` and ``Interrupted``.
    """
    if not is_name(name):
        raise UnknownName(f"{name!r} is not a valid name of a grant")
    directories = settings.directories
    source = FileTokenSource(name, tokens_dir=directories.tokens, demands_dir=directories.demands)
    ends, next_start = time.monotonic() + wait, 0.0
    first = source.current()
    refused: TokenFile | None = None
    refused_by: str | None = None
    failed: Result | None = None
    is_demanded = True
    while True:
        token = source.current()
        lifetime = math.inf if token is None or token.expires_at is None else max(token.expires_at - token.issued_at, 0)
        required = min(_MIN_VALID, lifetime / 4) if min_valid is None else min_valid
        lives = token is not None and token.access_token is not None and valid_for(token) >= required
        if token is not None:
            if lives and refused is None and (refused_by := refusal(token, ends - time.monotonic())) is not None:
                refused = token
                source.rejected(token, refused_by)
            if lives and (refused is None or refused.access_token != token.access_token):
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
            if lives or not may_be_last(token):  # a refused token has nothing to lose (I1)
                is_demanded = source.demand(token, expiring=not lives)
        if stopping():
            raise Interrupted(f"{name}: interrupted while waiting for a token; nothing is lost")
        result, later = None, False
        if rotation.is_running:
            try:
                result = rotation.result(min(_POLL_INTERVAL, max(ends - time.monotonic(), 0)))
            except NotInTime:
                if not lives:
                    raise
                later = True
            failed = result or failed
        elif settings.store is not None:
            if (now := time.monotonic()) >= next_start and ends - now > _START_INTERVAL:
                rotation.start(min(ends - now - _START_INTERVAL, _LONGEST_LOCK_WAIT))
                next_start = now + _DATABASE_INTERVAL
        elif (found := _inspect_if_owned(directories, name, token is not None)) is not None:
            now = time.monotonic()
            if found.needs_lock and now >= next_start and (failed is None or ends - now > _START_INTERVAL):
                # It ends its wait for the lock before this wait ends, so that its reason is known.
                rotation.start(min(max(ends - now - _START_INTERVAL, _POLL_INTERVAL), _LONGEST_LOCK_WAIT))
                next_start = now + _START_INTERVAL
            elif isinstance(found.record, Grant) and isinstance(found.decision, Wait):
                result = failed = Result.from_decision(found.record, found.decision)
                is_current = token is not None and token.generation == found.generation
                later = is_current and (found.decision.until or 0) > clocks.now().wall + ends - now
        if result is not None:
            if result.outcome in ("rotated", "adopted"):
                continue
            known = -1 if token is None else token.generation
            if result.outcome == "token_rejected" and (result.generation or 0) > known:
                continue  # it was rotated
            if result.outcome == "reauthorization_required":
                raise NeedsPerson(f"{name}: {result.detail}")
        remaining = ends - time.monotonic()
        if token is not None and lives and (remaining <= 0 or later):
            log.warning(
                "%s: %s refuses its newest token (generation %d), and there is no newer one yet; the refused one is "
                "printed. 'refresher status %s' shows the state of the grant",
                name,
                refused_by,
                token.generation,
                name,
            )
            return token
        if remaining <= 0:
            if token is None and (unknown := _unknown_to_reader(directories, name)) is not None:
                raise unknown
            unheard = _unheard(directories, is_demanded=is_demanded)
            raise NotInTime(_problem(source, failed, required, unheard, in_progress=rotation.is_running))
        progress([name])
        if not rotation.is_running:
            time.sleep(min(_POLL_INTERVAL, remaining))


def _problem(
    source: FileTokenSource, result: Result | None, required: float, unheard: str | None, *, in_progress: bool
) -> str:
    if result is not None and EXIT_CODES[result.outcome] != 0:
        return f"{result.name}: {result.outcome}: {result.detail}"
    if in_progress:
        return (
            f"{source.name}: the authorization server has not answered yet; the refresh goes on without this command: "
            "try again in a few seconds"
        )
    if unheard is not None:
        return f"{source.name}: {unheard}"
    if (problem := source.problem()) is not None:
        return str(problem)
    return (
        f"{source.name}: no token that is valid for {required:g} s was published in time; is 'refresher run' running? "
        "'refresher doctor' checks it (with cron, use --wait 70s)"
    )


def _unheard(directories: Directories, *, is_demanded: bool) -> str | None:
    """Return why no demand of a reader can be answered, and what to do, as far as the reader sees it."""
    for directory in (directories.demands, directories.tokens):
        with suppress(OSError):
            found = os.statvfs(directory)
            if found.f_bavail * found.f_frsize < _NO_SPACE or (found.f_files and not found.f_favail):
                return f"the file system of {directory} is full, so no newer token can be published: make room"
    if not is_demanded:
        return f"cannot create a demand in {directories.demands}: check that this user may write there"
    return None


def _unknown_to_reader(directories: Directories, name: str) -> UnknownName | None:
    """Return the error for a name without a token file beside those of others, if the grants belong to another user."""
    if _owns_grants(directories):
        return None
    known = sorted(path.stem for path in directories.tokens.glob("*.json") if is_name(path.stem))
    if not known or name in known:
        return None
    return UnknownName(f"there is no token of {name!r} in {directories.tokens} (known: {', '.join(known[:10])})")


def _owned_grant(directories: Directories, name: str) -> Grant | None:
    """Return the grant if it belongs to the current user."""
    try:
        record = records.load(directories, name).record if _owns_grants(directories) else None
    except GrantFileError:
        return None
    return record if isinstance(record, Grant) else None


def _inspect_if_owned(directories: Directories, name: str, published: bool) -> Inspection | None:
    """Return the state of ``name``; ``None`` if the grant belongs to another user or to another state directory."""
    if not _owns_grants(directories):
        return None
    listing = directories.listing((name,))
    if name not in listing.all:
        if published:
            return None
        raise names.unknown(FileStore(directories), name)
    return inspect(Publisher(directories), name, listing=listing, demands=demands.pending(directories, (name,)))


def rotate_if_necessary(
    settings: Settings, name: str, *, lock_wait: float, stopping: Callable[[], bool], emit: Emit
) -> Result | None:
    """Rotate ``name`` of the current user if it is due or demanded; return ``None`` if there is nothing to do."""
    directories = settings.directories
    if settings.store is not None:
        return _rotate_in_database(settings, name, stopping=stopping, emit=emit)
    found = _inspect_if_owned(directories, name, published=True)
    if found is not None and found.needs_lock:
        from refresher.operations.rotate import Order, Terms, rotate  # the command that waits does not need httpcore

        terms = Terms(ca_file=settings.ca_file, stopping=stopping, lock_wait=lock_wait, emit=emit)
        return rotate(FileStore(directories), Order.after(found), terms)
    if found is not None and isinstance(found.record, Grant) and isinstance(found.decision, Wait):
        return Result.from_decision(found.record, found.decision)
    return None


def _rotate_in_database(settings: Settings, name: str, *, stopping: Callable[[], bool], emit: Emit) -> Result | None:
    from refresher.operations.run_once import run_once

    results = run_once(settings, (name,), force=False, horizon=0.0, stopping=stopping, emit=emit)
    return next(iter(results), None)


def _owns_grants(directories: Directories) -> bool:
    """Whether the current user owns ``grants/``; its permissions are checked later."""
    try:
        return directories.grants.stat().st_uid == os.geteuid()
    except OSError:
        return False
