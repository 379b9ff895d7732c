"""The private records: how one is read, and how one replaces another without a server."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from refresher.common.errors import ExposedGrantFile, GrantFileError, StorageError
from refresher.grants.encoding import decode, encode, version_error
from refresher.grants.envelope import Keys
from refresher.grants.record import NO_RECORD, Grant, Record, Stored
from refresher.storage import files
from refresher.storage.directories import Directories

__all__ = ["LARGEST", "Candidate", "count", "load", "read_candidate", "spill_of", "write"]

LARGEST: Final = 8 * 1024 * 1024
"""Bytes. A token response has 1 MiB at most, and no record made from it is larger than this."""


_HEAD: Final = 256


class Candidate(NamedTuple):
    """A file that may hold the next record."""

    path: Path
    data: bytes
    """Empty if there is no file."""
    record: Record | None
    """``None`` if it is damaged, or belongs to another name."""


def load(directories: Directories, name: str) -> Stored:
    """Return the record of ``name`` from the disk.

    Raises ``GrantFileError`` for a record that cannot be used. The file stays as it is.
    """
    path = f"{directories.state}/grants/{name}.json"  # no Path, which takes longer to make than the file to open
    found = None
    try:
        found = files.read(path, LARGEST, private=True)
        return Stored(None, NO_RECORD) if found is None else decode(found.data, name, directories.keys)
    except OSError as error:
        raise GrantFileError(f"cannot read {path}: {error.strerror}") from None
    except files.NotPrivate as error:
        raise ExposedGrantFile(f"{path}: {error}") from None
    except (ValueError, GrantFileError) as error:
        is_newer = found is not None and version_error(found.data) is not None
        advice = "" if is_newer else f". Restore it, or log in again: 'refresher login {name} URL'"
        raise GrantFileError(f"{path}: {error}{advice}") from None


def count(directories: Directories) -> int:
    """Return the number of grants that are not removed. For a message: only the first bytes of each record are read.

    Raises ``DirectoryError``.
    """
    return sum(not _begins_as_tombstone(directories, name) for name in directories.listing().names)


def _begins_as_tombstone(directories: Directories, name: str) -> bool:
    try:
        descriptor = os.open(f"{directories.grants}/{name}.json", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return b'"kind":"tombstone"' in os.read(descriptor, _HEAD)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def read_candidate(path: Path, name: str, keys: Keys) -> Candidate:
    """Read a file that may hold the next record of ``name``; what is sealed in it is not opened. Raises ``OSError``."""
    try:
        found = files.read(path, LARGEST)
    except ValueError:
        return Candidate(path, b"not a file", None)
    data = b"" if found is None else found.data
    try:
        # The zeros of its reservation follow a record whose file was not yet truncated.
        return Candidate(path, data, decode(data.rstrip(b"\0"), name, keys).record)
    except GrantFileError:
        return Candidate(path, data, None)


def write(directories: Directories, name: str, stored: Stored, record: Record) -> Stored:
    """Replace ``stored`` by ``record`` durably, without a journal, and return what is stored now.

    For operations that send no request. Raises ``StorageError``: then the old record is unchanged, or the new one is
    in place but may not survive a power loss; and ``KeyUnavailable``: then nothing is written.
    """
    written = msgspec.structs.replace(record, begun_from=stored.checksum)
    data, checksum = encode(written, directories.keys)
    path = directories.fresh(name)
    try:
        files.durable_create(path, data)
        path.rename(directories.record(name))
        files.sync_directory(directories.grants)
    except OSError as error:
        with suppress(OSError):
            path.unlink()  # it is there only if it was not renamed
        raise StorageError(f"cannot write {directories.record(name)}: {error.strerror}") from None
    return Stored(written, checksum)


def spill_of(grant: Grant) -> Path | None:
    """Return the spill that was not mounted when its attempt was settled; ``None`` if it still is not."""
    if grant.doubt is None or grant.doubt.spill is None:
        return None
    path = Path(grant.doubt.spill)
    return path if os.path.lexists(path) else None
