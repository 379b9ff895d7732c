"""Remove: the refresh token goes, its memory stays, and readers are told."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from refresher.common import clocks
from refresher.common.errors import StorageError
from refresher.grants.record import Grant, Stored, Tombstone, spend
from refresher.storage import demands, lock, publishing, records, recovery
from refresher.storage.directories import Directories
from refresher.storage.journal import write_record

__all__ = ["clear_copies", "remove"]

_AT_THE_SERVER: Final = "at the server it lives until you revoke it there"


def remove(
    directories: Directories,
    name: str,
    *,
    stopping: Callable[[], bool],
    revoke: Callable[[Grant], str] | None = None,
) -> str:
    """Replace the grant of ``name`` by a tombstone and publish ``removed``.

    ``revoke`` ends it at its server before, and says what became of it there, which is returned. Raises what it raises,
    ``UnknownName``, ``GrantFileError`` where the record is damaged, ``LockBusy`` and ``Interrupted``: the grant stands
    then. ``StorageError`` says itself whether it stands.
    """
    if name not in directories.listing().names:
        raise records.unknown(directories, name)
    # One lock over all of it: nobody rotates a grant that is being revoked.
    with lock.held(directories.lock(name), stopping=stopping):
        stored = recovery.resolve(directories, name, clocks.now(), giving_up=True)
        if not isinstance(stored.record, Grant):
            raise records.removed(name)
        words = _AT_THE_SERVER if revoke is None else revoke(stored.record)
        # Revoked, or in doubt, it may be spent, and must not come back by an import.
        _bury(directories, stored, stored.record, spent=revoke is not None or stored.record.doubt is not None)
    return words


def _bury(directories: Directories, stored: Stored, grant: Grant, *, spent: bool) -> None:
    name = grant.name
    tombstone = Tombstone(
        name=name,
        grant_id=grant.grant_id,
        generation=max(grant.generation, publishing.published_generation(directories, name)),
        begun_from=stored.checksum,
        removed_at=clocks.now().wall,
        scope=grant.scope,
        origins=grant.origins,
        spent=spend(grant.spent, grant.refresh_token) if spent and grant.refresh_token else grant.spent,
    )
    write_record(directories, name, stored, tombstone)
    clear_copies(directories, name)
    demands.pending(directories).settle(directories, name, keep=range(0))
    try:
        publishing.publish(directories, tombstone)
    except StorageError as error:
        raise StorageError(f"{name} is removed, but {error}; the next run-once tells its readers") from None


def clear_copies(directories: Directories, name: str) -> None:
    """Delete what was kept for a person to look at: answers and files set aside may hold refresh tokens too."""
    copy = re.compile(re.escape(name) + r"\.(answer|(json|next|next\.\d+|intent)\.aside)\.\d+")
    spilled = re.compile(re.escape(name) + r"\.([0-9a-f]{32}\.next|answer\.\d+)(\.aside\.\d+)?")
    for directory, pattern in ((directories.grants, copy), (directories.spill, spilled)):
        with suppress(OSError):
            for path in directory.iterdir():
                if pattern.fullmatch(path.name):
                    with suppress(OSError):  # one that is a directory keeps none of the others
                        path.unlink()
