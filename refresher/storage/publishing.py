"""Publishing: the token file is derived from the grant, and from nothing else."""

import logging
import stat
from pathlib import Path
from typing import Final

import msgspec

import shim._token as token_file
from refresher.common import clocks
from refresher.common.errors import StorageError
from refresher.grants import policy
from refresher.grants.record import Grant, Record, Tombstone
from refresher.storage import files
from refresher.storage.directories import Directories, Opened
from refresher.storage.files import Seen
from shim._token import Problem, TokenFile
from shim.errors import TokenFileError

__all__ = ["current", "derive", "is_stale", "publish", "published", "published_generation", "state_of"]

_LARGEST: Final = 8 * 1024 * 1024

# Which content of a token file this process has published again as it was: once is mending, twice would be a quarrel.
_MENDED: Final[dict[Path, int]] = {}
_QUARRELS: Final[set[Path]] = set()

log = logging.getLogger(__name__)


def derive(record: Record) -> bytes | None:
    """Return the token file that ``record`` calls for; ``None`` where there is nothing to say yet."""
    if isinstance(record, Tombstone):
        return token_file.render(_removed(record))
    if record.access_token is None and record.failure is None:
        return None
    problem = _problem(record)
    return token_file.render(
        TokenFile(
            name=record.name,
            grant_id=record.grant_id,
            generation=record.generation,
            state=_state(record, problem),
            access_token=None if record.access_token is None else record.access_token.reveal(),
            token_type=record.token_type,
            issued_at=record.issued_at,
            expires_at=record.expires_at,
            scope=record.scope,
            origins=record.origins,
            error=problem,
        )
    )


def state_of(grant: Grant) -> str:
    """Return the published state of a grant."""
    return _state(grant, _problem(grant))


def _state(grant: Grant, problem: Problem | None) -> str:
    if policy.needs_person(grant):
        return "reauthorization_required"
    return "active" if problem is None else "failing"


def is_stale(directories: Directories, record: Record, opened: Opened | None = None) -> bool:
    """Whether the published file is missing, differs from what ``record`` calls for, or has other permissions.

    ``opened``: the directories, by whoever asks of many.
    """
    published = _published(directories, record.name, opened)
    wanted = _wanted(record, published)
    return wanted is not None and not _is_up_to_date(directories, record.name, wanted, published, opened)


def published(directories: Directories, name: str) -> TokenFile | None:
    """Return what readers have seen last, ``None`` where that cannot be read."""
    return _parsed(_published(directories, name), name)


def published_generation(directories: Directories, name: str) -> int:
    """Return the generation that readers have seen, -1 where they have seen none that can be read."""
    seen = published(directories, name)
    return -1 if seen is None else seen.generation


def current(directories: Directories, record: Record) -> range:
    """Return the generations whose tokens agents may hold: that of ``record``, and up to what readers have seen.

    The two differ where a record was restored from a backup. Beyond them nobody has a token that could be refused.
    """
    return range(record.generation, max(record.generation, published_generation(directories, record.name)) + 1)


def publish(directories: Directories, record: Record, *, again: bool = False) -> bool:
    """Write the token file of ``record`` where it differs, or ``again`` so that every reader looks; under its lock.

    Returns whether readers now see ``record``: an older generation never replaces a newer one. Raises
    ``StorageError``.
    """
    published = _published(directories, record.name)
    wanted = _wanted(record, published)
    if wanted is None or (not again and _is_up_to_date(directories, record.name, wanted, published)):
        return True
    dead = isinstance(record, Grant) and record.dead
    seen = _parsed(published, record.name)
    if seen is not None and seen.generation > record.generation and not dead:
        return False
    path = directories.token(record.name)
    try:
        mode, group = directories.sharing()
        files.replace(path, wanted, mode=mode, group=group)
    except OSError as error:
        raise StorageError(f"cannot publish {path}: {error.strerror}") from None
    if published is not None and wanted == published.data and not again:
        _MENDED[path] = hash(wanted)
    return True


def _wanted(record: Record, published: Seen | None) -> bytes | None:
    """Return what is to be published; nothing where a token of the grant before this one may still live (I5)."""
    # What is there matters to these alone: a healthy grant's file is compared, never parsed.
    if isinstance(record, Grant) and (record.dead or record.access_token is None):
        seen = _parsed(published, record.name)
        if seen is None:
            return derive(record)
        if record.dead and seen.generation > record.generation and seen.state != "removed":
            # A restored backup: readers keep the newer token, and learn that there will be no other.
            return token_file.render(seen._replace(state="reauthorization_required", error=_problem(record)))
        if record.access_token is None and _lives(seen, record):
            return None
    return derive(record)


def _parsed(published: Seen | None, name: str) -> TokenFile | None:
    try:
        seen = token_file.parse(b"" if published is None else published.data)
    except TokenFileError:
        return None
    return seen if seen.name == name else None  # no reader takes another's


def _lives(token: TokenFile, grant: Grant) -> bool:
    """Whether a token of the grant before this one may still be good; both are of the same name, so of one server."""
    if token.access_token is None or token.state == "removed":
        return False
    before = msgspec.structs.replace(grant, issued_at=token.issued_at, expires_at=token.expires_at)
    return policy.end_of_life(before) > clocks.now().wall


def _is_up_to_date(
    directories: Directories, name: str, wanted: bytes, published: Seen | None, opened: Opened | None = None
) -> bool:
    if published is None or wanted != published.data:
        return False
    mode, group = directories.sharing() if opened is None else opened.sharing
    status = published.status
    if stat.S_IMODE(status.st_mode) != mode:
        return False
    if group in (None, status.st_gid):
        return True
    path = directories.token(name)
    if _MENDED.get(path) != hash(wanted):
        return False
    # Two that undo each other's work would go on for ever, and each time every reader would look.
    if path not in _QUARRELS:
        _QUARRELS.add(path)
        log.warning(
            "%s is of group %d again, and is left so until it changes: does another refresher run with another "
            "--tokens-group? This one's is %d",
            path,
            status.st_gid,
            group,
        )
    return True


def _published(directories: Directories, name: str, opened: Opened | None = None) -> Seen | None:
    at = None if opened is None else opened.tokens
    try:
        return files.see(directories.token(name) if at is None else f"{name}.json", _LARGEST, at=at)
    except (OSError, ValueError):
        return None  # whatever is there, it is not what should be


def _removed(tombstone: Tombstone) -> TokenFile:
    return TokenFile(
        name=tombstone.name,
        grant_id=tombstone.grant_id,
        generation=tombstone.generation,
        state="removed",
        access_token=None,
        token_type="Bearer",  # noqa: S106  a token type, no password
        issued_at=tombstone.removed_at,
        expires_at=None,
        scope=tombstone.scope,
        origins=tombstone.origins,
        error=None,
    )


def _lived(grant: Grant, at: float) -> bool:
    return grant.access_token is not None and at < policy.end_of_life(grant)


def _problem(grant: Grant) -> Problem | None:
    failure = grant.failure
    # A server that wants to be asked later has refused nothing that an agent could miss, or else one would demand it.
    if failure is None or (failure.outcome == "too_early" and grant.refusals == 0 and _lived(grant, failure.at)):
        return None
    return Problem(failure.code, failure.description, failure.at, policy.retry_at(grant))
