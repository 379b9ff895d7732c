"""Reading the private records."""

from pathlib import Path

from refresher.common.errors import ExposedGrantFile, GrantFileError, UnknownName
from refresher.grants.record import NOTHING, Grant, Stored, Tombstone, decode
from refresher.storage import files
from refresher.storage.directories import Directories, Opened
from refresher.storage.journal import LARGEST_RECORD
from shim._token import is_name

__all__ = ["load", "removed", "spill_of", "unknown"]


def load(directories: Directories, name: str, opened: Opened | None = None) -> Stored:
    """Return the record of ``name`` as it lies on the disk; ``opened``: the directories, by whoever loads many.

    Raises ``GrantFileError`` where there is one that cannot be used; the file is left as it is.
    """
    at = None if opened is None else opened.grants
    try:
        path = directories.record(name) if at is None else f"{name}.json"
        seen = files.see(path, LARGEST_RECORD, private=True, at=at)
        return Stored(None, NOTHING) if seen is None else decode(seen.data, name)
    except OSError as error:
        raise GrantFileError(f"cannot read {directories.record(name)}: {error.strerror}") from None
    except files.NotPrivate as error:
        raise ExposedGrantFile(f"{directories.record(name)}: {error}") from None
    except (ValueError, GrantFileError) as error:
        raise GrantFileError(
            f"{directories.record(name)}: {error}. Restore it, or log in again: 'refresher login {name} URL'"
        ) from None


def spill_of(grant: Grant) -> Path | None:
    """Return where a spill lies that was out of reach when its attempt was settled; ``None`` where it still is."""
    if grant.doubt is None or grant.doubt.spill is None:
        return None
    path = Path(grant.doubt.spill)
    return path if files.is_there(path) else None


def unknown(directories: Directories, name: str) -> UnknownName:
    """Return the error for a name that nobody knows, with those that are known."""
    known = [there for there in directories.listing().names if is_name(there) and not _is_removed(directories, there)]
    return UnknownName(f"there is no grant named {name!r} (known: {', '.join(known[:10]) or 'none yet'})")


def removed(name: str) -> UnknownName:
    """Return the error for a name whose grant was removed."""
    return UnknownName(f"{name} was removed; 'refresher login {name} URL' makes it anew")


def _is_removed(directories: Directories, name: str) -> bool:
    try:
        return isinstance(load(directories, name).record, Tombstone)
    except GrantFileError:
        return False
