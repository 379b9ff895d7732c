"""The file ``rest-index``: grants that needed nothing when ``run-once`` read them, and until when that holds.

With thousands of grants, ``run-once`` reads only the others. An entry counts only while the stamps of the record and
the token file are the same, and while both clocks go on together. The record is always right: a file that is lost,
damaged, of another version, boot, or directory costs time and nothing else. It holds no secret and is never synced.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from refresher import __version__
from refresher.common.clocks import Moment
from refresher.storage import files, startup_checks
from refresher.storage.directories import Directories, Sharing

__all__ = ["FEWEST", "Rest", "load", "save"]

FEWEST: Final = 100
"""With fewer grants, the index costs more than it saves."""

_LARGEST: Final = 256 * 1024 * 1024
_CLOCK_JUMP: Final = 1.0
_ABANDONED: Final = 60.0


class Rest(NamedTuple):
    """A grant that needs nothing until ``due`` (epoch seconds), by files with ``stamp``."""

    stamp: int
    generation: int
    due: float


class _Index(msgspec.Struct, frozen=True, array_like=True):
    version: str
    boot_id: str
    offset: float
    """The wall clock minus the clock of the boot."""
    places: list[tuple[int, int]]
    sharing: Sharing | None
    rests: dict[str, Rest]


def load(directories: Directories, sharing: Sharing | None, now: Moment) -> dict[str, Rest]:
    """Return the grants that rested; none if the index does not hold for ``directories`` at ``now``."""
    try:
        if (found := files.read(directories.rest_index, _LARGEST, private=True)) is None:
            return {}
        checksum, _, data = found.data.partition(b"\n")
        if checksum != _checksum(data):
            return {}
        index, here = msgspec.json.decode(data, type=_Index), _index(directories, sharing, now, {})
    except (OSError, ValueError):
        return {}
    same = (index.version, index.boot_id, index.places, index.sharing) == (
        here.version,
        here.boot_id,
        here.places,
        here.sharing,
    )
    return index.rests if same and now.boot_id and abs(index.offset - here.offset) < _CLOCK_JUMP else {}


def save(directories: Directories, sharing: Sharing | None, now: Moment, rests: Mapping[str, Rest]) -> None:
    """Replace the index, unless another process does so now. Never raises."""
    path = directories.rest_index
    new = path.with_name(f".{path.name}.new")
    with suppress(OSError):
        if any(map(startup_checks.is_shared, (directories.grants, directories.tokens))):
            return  # another machine may have changed a file whose stamp is cached here
        data = msgspec.json.encode(_index(directories, sharing, now, rests))
        with suppress(FileNotFoundError):
            if abs(time.time() - new.lstat().st_mtime) > _ABANDONED:
                new.unlink()
        descriptor = files.create(new)  # only one process at a time can
        try:
            files.write_all(descriptor, _checksum(data) + b"\n" + data)
            new.rename(path)
        except OSError:
            new.unlink()
            raise
        finally:
            os.close(descriptor)


def _index(directories: Directories, sharing: Sharing | None, now: Moment, rests: Mapping[str, Rest]) -> _Index:
    places = [(status.st_dev, status.st_ino) for status in (directories.grants.stat(), directories.tokens.stat())]
    return _Index(f"1 {__version__}", now.boot_id, now.wall - now.boottime, places, sharing, dict(rests))


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode("ascii")
