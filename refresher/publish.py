"""Publishing: the token file is derived from the grant, and from nothing else."""

from contextlib import suppress

import shim._token as token_file
from refresher import files
from refresher.directories import Directories
from refresher.errors import StorageError
from refresher.grant import Grant, Record, Tombstone
from shim._token import Problem, TokenFile
from shim.errors import TokenFileError

__all__ = ["derive", "is_stale", "publish", "published_generation", "state_of"]

_LARGEST: int = 1024 * 1024


def derive(record: Record) -> bytes | None:
    """Return the token file that ``record`` calls for; ``None`` where there is nothing to say yet."""
    if isinstance(record, Tombstone):
        return token_file.render(_removed(record))
    if record.access_token is None and record.failure is None:
        return None
    return token_file.render(
        TokenFile(
            name=record.name,
            grant_id=record.grant_id,
            generation=record.generation,
            state=state_of(record),
            access_token=None if record.access_token is None else record.access_token.reveal(),
            token_type=record.token_type,
            issued_at=record.issued_at,
            expires_at=record.expires_at,
            scope=record.scope,
            origins=record.origins,
            error=_problem(record),
        )
    )


def state_of(grant: Grant) -> str:
    """Return the published state of a grant."""
    if grant.dead:
        return "reauthorization_required"
    return "failing" if _problem(grant) is not None else "active"


def is_stale(directories: Directories, record: Record) -> bool:
    """Whether the published file is missing or differs from what ``record`` calls for."""
    wanted = derive(record)
    return wanted is not None and wanted != _published(directories, record.name)


def published_generation(directories: Directories, name: str) -> int:
    """Return the generation that readers have seen, -1 where they have seen none that can be read."""
    data = _published(directories, name)
    if data is not None:
        with suppress(TokenFileError):
            return token_file.parse(data).generation
    return -1


def publish(directories: Directories, record: Record, *, again: bool = False) -> bool:
    """Write the token file of ``record`` where it differs, or ``again`` so that every reader looks; under its lock.

    Returns whether readers now see ``record``: an older generation never replaces a newer one. Raises
    ``StorageError``.
    """
    wanted = derive(record)
    if wanted is None or (not again and wanted == _published(directories, record.name)):
        return True
    if published_generation(directories, record.name) > record.generation:
        return False
    path = directories.token(record.name)
    try:
        files.replace(path, wanted, mode=directories.token_mode, group=directories.group)
    except OSError as error:
        raise StorageError(f"cannot publish {path}: {error.strerror}") from None
    return True


def _published(directories: Directories, name: str) -> bytes | None:
    try:
        return files.read(directories.token(name), _LARGEST)
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


def _problem(grant: Grant) -> Problem | None:
    failure = grant.failure
    # A server that wants to be asked later has refused nothing that an agent could miss.
    if failure is None or failure.outcome == "too_early":
        return None
    return Problem(failure.code, failure.description, failure.at, failure.retry_at)
