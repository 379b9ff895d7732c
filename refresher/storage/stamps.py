"""Stamps: one number for each name, which is another one after its record or its token file has changed.

Nothing is opened, so the stamps of all names cost a tenth of what reading their files costs. A change in place and a
change of the permissions give another stamp too, unless they come within a tick of the file system's clock after the
change before.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from refresher.storage.directories import Directories

__all__ = ["Stamps", "find_all", "find_one", "of_records"]

_SUFFIX: Final = ".json"
_SETTLED_NS: Final = 2_000_000_000


class Stamps(NamedTuple):
    """The stamps of all names that have a record."""

    by_name: dict[str, int]
    unsettled: set[str]
    """The names whose files have changed so lately that another change could leave the same stamp."""


def find_all(directories: Directories) -> Stamps:
    """Return the stamps of all names that have a record."""
    by_name: dict[str, int] = {}
    unsettled: set[str] = set()
    settled = time.time_ns() - _SETTLED_NS
    for directory in (directories.grants, directories.tokens):
        for name, status in _files(directory):
            if directory is directories.tokens and name not in by_name:
                continue
            by_name[name] = _stamp(by_name.get(name, 0), status)
            if status.st_ctime_ns > settled:
                unsettled.add(name)
    return Stamps(by_name, unsettled)


def of_records(directories: Directories) -> dict[str, int]:
    """Return a stamp of each record alone; its token file does not count."""
    return {name: _stamp(0, status) for name, status in _files(directories.grants)}


def find_one(directories: Directories, name: str) -> int | None:
    """Return the stamp of ``name``; ``None`` if it has no record."""
    stamp = 0
    for directory in (directories.grants, directories.tokens):
        with suppress(OSError):
            stamp = _stamp(stamp, os.stat(f"{directory}/{name}{_SUFFIX}", follow_symlinks=False))  # noqa: PTH116
        if not stamp:
            return None
    return stamp


def _stamp(before: int, status: os.stat_result) -> int:
    # Of integers only, so that it is the same in each process.
    return hash((before, status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns)) or 1


def _files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Return each file of a name in a directory; none if it cannot be read."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        entries: list[str] = []
        with suppress(OSError):
            entries = os.listdir(descriptor)  # noqa: PTH208  plain names
        for entry in entries:
            if entry.endswith(_SUFFIX):
                try:
                    status = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
                except OSError:
                    continue
                yield entry[: -len(_SUFFIX)], status
    finally:
        os.close(descriptor)
