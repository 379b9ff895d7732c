"""The metrics of ``run-once``: a file for the textfile collector of node_exporter.

Its counters continue those of the file that it replaces.
"""

import logging
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from refresher.common.errors import DirectoryError, LockBusy, RefresherError
from refresher.observers.metrics import MOST_NAMES, Counts, Row, grants_of, read_rows, render
from refresher.operations.rest import Resting
from refresher.storage import demands, files, last_run, lock
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore

__all__ = ["write"]

log = logging.getLogger(__name__)

_LARGEST: Final = 8 * 1024 * 1024
_MODE: Final = 0o644
"""node_exporter is another user."""

_LOCK_WAIT: Final = 5.0


def write(
    path: Path,
    directories: Directories,
    counts: Counts,
    dropped: Mapping[str, int],
    hook_failures: Mapping[str, int] = {},
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Write the metrics to ``path``, with what this process has counted. A failure is only a warning."""
    try:
        if not directories.state.exists():
            directories.prepare()  # there is no grant yet
        with lock.held(directories.metrics_lock, stopping=stopping, wait=_LOCK_WAIT):
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _check(path, directory, directories)
                _add_earlier(path, counts)
                rows, others = _rows(directories)
                counts.keep({*(row.name for row in rows), *others}.__contains__)
                grants = grants_of(rows, unread=len(others))
                at = last_run.at(directories)
                text, _ = render(counts, grants, last_run=at, dropped=dropped, hook_failures=hook_failures)
                files.replace(directory, path.name, text, mode=_MODE, group=None)
            finally:
                os.close(directory)
    except LockBusy:
        log.warning("cannot write the metrics file %s: another run writes it; the counts of this run are lost", path)
    except Exception as error:  # noqa: BLE001  the rotations are done, and their exit code counts
        why = str(error) if isinstance(error, RefresherError) else getattr(error, "strerror", None)
        log.warning("cannot write the metrics file %s: %s", path, why or f"internal error ({type(error).__name__})")


def _add_earlier(path: Path, counts: Counts) -> None:
    """Continue the counters of the file at ``path``; a damaged file has none."""
    try:
        if (found := files.read(path, _LARGEST)) is not None:
            counts.add(found.data.decode())
    except ValueError:
        log.warning("the metrics file %s is damaged: its counters begin at 0", path)


def _check(path: Path, directory: int, directories: Directories) -> None:
    """Raise ``DirectoryError`` if the metrics would replace a file of refresher, a link or a device."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path.name, dir_fd=directory).st_mode):
            raise DirectoryError("it is not a regular file; give the path of one")
    found = os.fstat(directory)
    for own in (directories.grants, directories.tokens, directories.demands, directories.spill):
        with suppress(OSError):
            if os.path.samestat(found, own.stat()):
                raise DirectoryError(f"{own} is a directory of refresher: give another one")


def _rows(directories: Directories) -> tuple[list[Row], list[str]]:
    """Return the grants, and the names of others: they rest, so they are active, and only their tokens end."""
    listing = directories.listing()
    names, resting = list(listing.names), []
    if len(names) > MOST_NAMES:
        rest = Resting(directories, listing, demands.pending(directories, names))
        resting = [name for name in names if rest.find(name, 0.0) is not None]
        names = [*{*names} - {*resting}]
        shown = max(MOST_NAMES - len(names), 0)
        names, resting = [*names, *resting[:shown]], resting[shown:]
    return read_rows(FileStore(directories), names), resting
