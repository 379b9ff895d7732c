"""What may hold secrets of a grant in files, with what key each is sealed, and how it becomes as it is configured.

Besides the record these are the files that are kept for a person: answers that could not be read, and what was set
aside. What an attempt left is settled by the recovery before, in the form that is configured. A spill in the spill
directory can belong to another state directory, which alone may change it: its record begins from those very bytes.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from refresher.common.errors import GrantFileError, StorageError
from refresher.grants.encoding import decode, encode, encode_kept, is_sealed, key_id_of, open_kept, version_error
from refresher.grants.envelope import PLAIN, Keys
from refresher.grants.record import Moved, Stored, Tombstone
from refresher.storage import files, records
from refresher.storage.directories import Directories
from refresher.storage.records import LARGEST
from refresher.storage.store import Holding

__all__ = [
    "copies",
    "delete_copies",
    "holding_of",
    "holdings",
    "names_with_copies",
    "opened",
    "opened_copy",
    "reseal",
    "reseal_copies",
    "resealed",
]

_HELD_BACK: Final = re.compile(r".+\.[0-9a-f]{32}\.(spill|new)\.aside\.\d+")
"""Set aside with a database: a line is before the record (``postgres/spills.py``)."""

_COPIED: Final = r"(?P<name>.+)\.(answer|(json|next|next\.\d+|[0-9a-f]{32}\.(spill|new))\.aside)\.\d+"
_COPY: Final = re.compile(_COPIED)
_SPILLED: Final = re.compile(r"(?P<name>.+)\.([0-9a-f]{32}\.next|answer\.\d+)(\.aside\.\d+)?")
_LIVE: Final = re.compile(r".+\.[0-9a-f]{32}\.next")
_BARE: Final = re.compile(r"(?P<name>.+)\.(barred|intent\.aside\.\d+)")
_CUT_OFF: Final = re.compile(rf"\.({_COPIED}|{_SPILLED.pattern.replace('?P<name>', '?:')})\.new")
"""What a kill leaves of ``files.replace``."""


def _copies(directories: Directories, name: str | None = None) -> Iterator[Path]:
    """Return the files that are kept for a person, of ``name`` or of all."""
    return (path for path in _beside(directories, name) if not _LIVE.fullmatch(path.name))


def _beside(directories: Directories, name: str | None) -> Iterator[Path]:
    """Return the files beside the records that may hold secrets, also the spills of attempts."""
    for directory, pattern in ((directories.grants, _COPY), (directories.spill, _SPILLED)):
        with suppress(OSError):
            for entry in sorted(os.listdir(directory)):  # noqa: PTH208  plain names
                if (match := pattern.fullmatch(entry)) and name in (None, match["name"]):
                    yield directory / entry


def names_with_copies(directories: Directories) -> set[str]:
    """Return the names of which a file is kept for a person."""
    return {_name_of(path) for path in _copies(directories)}


def _name_of(path: Path) -> str:
    match = _COPY.fullmatch(path.name) or _SPILLED.fullmatch(path.name)
    return "" if match is None else match["name"]


def delete_copies(directories: Directories, name: str, *, spills: bool = True) -> None:
    """Delete the answers and the files set aside of a removed grant: they may hold refresh tokens too.

    ``spills``: also what is in the spill directory, in which a store of many hosts has nothing.
    """
    found = [path for path in _beside(directories, name) if spills or path.parent == directories.grants]
    with suppress(OSError):
        for path in directories.grants.iterdir():
            if (match := _BARE.fullmatch(path.name)) and match["name"] == name:
                found.append(path)  # noqa: PERF401  the condition reads better here
    for path in (*found, *_cut_off(directories, name)):
        with suppress(OSError):  # a directory of that name does not prevent the deletion of the others
            path.unlink()


def _cut_off(directories: Directories, name: str) -> Iterator[Path]:
    for directory in (directories.grants, directories.spill):
        with suppress(OSError):
            for path in directory.iterdir():
                if _CUT_OFF.fullmatch(path.name) and _name_of(path.with_name(path.name[1 : -len(".new")])) == name:
                    yield path


def holdings(directories: Directories, name: str, left: Collection[str] = ()) -> list[Holding]:
    """Return what holds secrets of ``name``, and with what key. ``left``: the files of an attempt."""
    own = directories.record(name)
    paths = [*([own] if os.path.lexists(own) else []), *(directories.grants / each for each in sorted(left))]
    with suppress(GrantFileError):
        # Of the spills of attempts, the one of this record: others can belong to another state directory.
        spill = directories.spilled(name, records.load(directories, name).checksum)
        paths += [spill] if os.path.lexists(spill) else []
    return [*_holdings(paths, name), *copies(directories, name)]


def copies(directories: Directories, name: str) -> list[Holding]:
    """Return the files that are kept of ``name`` for a person, and with what key each is sealed."""
    return _holdings(_copies(directories, name), name)


def _holdings(paths: Iterable[Path], name: str) -> list[Holding]:
    return [found for path in paths if (found := _holding(path, name)) is not None]


def _holding(path: Path, name: str) -> Holding | None:
    try:
        _, data = _parts(path)
        if not data or path.suffix == ".intent":
            return None
    except (OSError, ValueError, GrantFileError) as error:
        return Holding(path.name, None, str(getattr(error, "strerror", None) or error))
    return holding_of(path.name, data, name, is_record=path.name == f"{name}.json")


def holding_of(what: str, data: bytes, name: str, *, is_record: bool = False) -> Holding | None:
    """Return what ``data`` holds of ``name``, or ``None`` if it is a record without a secret.

    ``is_record``: what is no record is damaged; otherwise it is an answer, or what was set aside.
    """
    try:
        key_id = key_id_of(data)
        try:
            record = decode(data, name).record
        except GrantFileError:
            if is_record:
                raise
            record = None
    except GrantFileError as error:
        return Holding(what, None, str(error))
    if isinstance(record, Tombstone) or (isinstance(record, Moved) and record.arriving is None):
        return None
    return Holding(what, key_id)


def reseal(directories: Directories, name: str, stored: Stored) -> int:
    """Bring the record and each kept file of ``name`` to the form that is configured; return how many were changed.

    ``stored`` is the record after the recovery; the caller holds the name. Each change is durable before the next, and
    what was done is not done again after a kill. Raises ``StorageError``, and the first ``GrantFileError`` or
    ``KeyUnavailable`` after all that can be opened was changed.
    """
    problem: GrantFileError | None = None
    changed = 0
    try:
        _, data = _parts(directories.record(name))
        if stored.record is not None and resealed(data, name, directories.keys) is not None:
            records.write(directories, name, stored, stored.record)
            changed += 1
    except GrantFileError as error:
        problem = error
    except OSError as error:
        raise StorageError(f"cannot change {error.filename or name}: {error.strerror}") from None
    changed += reseal_copies(directories, name)
    if problem is not None:
        raise problem
    return changed


def reseal_copies(directories: Directories, name: str) -> int:
    """Bring each file that is kept of ``name`` to the form that is configured; raise as ``reseal`` does."""
    problem: GrantFileError | None = None
    changed = 0
    try:
        for path in _copies(directories, name):
            try:
                head, data = _parts(path)
                new = resealed(data, name, directories.keys)
            except (GrantFileError, ValueError) as error:
                kind = type(error) if isinstance(error, GrantFileError) else GrantFileError
                problem = problem or kind(f"{path}: {error}; delete it if it is not needed")
                continue
            if new is not None:
                _replace(path, head + new)
                changed += 1
    except OSError as error:
        raise StorageError(f"cannot change {error.filename or name}: {error.strerror}") from None
    if problem is not None:
        raise problem
    return changed


def resealed(data: bytes, name: str, keys: Keys) -> bytes | None:
    """Return what is in ``data``, a record or what was kept, in the form that is configured; ``None``: it has it.

    Raises ``KeyUnavailable``, and ``GrantFileError`` for an envelope that cannot be opened.
    """
    key, sealed_with = keys.current(), key_id_of(data)
    if not data or sealed_with == (None if key is None else key.id):
        return None
    try:
        record = decode(data, name, keys).record
    except GrantFileError:
        if (newer := version_error(data)) is not None:
            raise GrantFileError(newer) from None
        return encode_kept(name, open_kept(data, name, keys), keys)
    return None if record is None or isinstance(record, Tombstone) else encode(record, keys)[0]


def opened_copy(directories: Directories, entry: str) -> bytes:
    """Return what is in a file that was kept for a person, opened: ``entry`` is its name.

    Raises ``GrantFileError`` if there is none or its key is not here.
    """
    path = next((each for each in _copies(directories) if each.name == entry), None)
    try:
        if path is None:
            raise FileNotFoundError(2, "it is no file that refresher has kept for a person")
        return opened(_parts(path)[1], _name_of(path), directories.keys)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GrantFileError(f"cannot read {path or directories.grants / entry}: {why}") from None


def opened(data: bytes, name: str, keys: Keys) -> bytes:
    """Return ``data``, a record of ``name`` or what was kept of it, in clear text. Raises ``GrantFileError``."""
    if not is_sealed(data):
        return data
    try:
        record = decode(data, name, keys).record
    except GrantFileError:
        return open_kept(data, name, keys)
    return data if record is None else encode(record, PLAIN)[0]


def _parts(path: Path) -> tuple[bytes, bytes]:
    """Return what is before the record in a file, and the record without the zeros of its reservation.

    Raises ``OSError`` and ``ValueError``.
    """
    found = files.read(path, LARGEST)
    data = b"" if found is None else found.data.rstrip(b"\0")
    if not _HELD_BACK.fullmatch(path.name):
        return b"", data
    line, end, data = data.partition(b"\n")
    return line + end, data


def _replace(path: Path, data: bytes) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.replace(descriptor, path.name, data, mode=0o600, group=None)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
