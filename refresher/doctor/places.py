"""The directories: owners, modes, locks, file systems, space, single-file mounts."""

import os
import shlex
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from refresher.common.errors import DirectoryError, StorageError
from refresher.doctor.finding import Finding, found, from_message
from refresher.observers import history, history_file
from refresher.storage import lock, single_directory, startup_checks, write_access
from refresher.storage.directories import Directories, Listing

__all__ = ["Places", "check", "check_history"]

_MEBIBYTE: Final = 1024 * 1024
_NO_SPACE: Final = _MEBIBYTE
"""Bytes. An attempt reserves 64 KiB or more, and a token response has 1 MiB at most."""
_LITTLE_SPACE: Final = 64 * _MEBIBYTE
_NO_INODES: Final = 16
_FEW_INODES: Final = 1000
_LITTLE: Final = 0.1
"""The part of a file system: a small one that is empty has enough."""


class Places(NamedTuple):
    """What was found about the directories; ``listing`` is ``None`` if refresher refuses them."""

    listing: Listing | None
    findings: list[Finding]


def check(directories: Directories) -> Places:
    """Check the directories as a start of refresher does, without creating or changing one."""
    listing: Listing | None = None
    findings: list[Finding] = []
    paths = (directories.grants, directories.tokens, directories.demands, directories.spill, directories.state)
    try:
        listing = directories.listing()
        with suppress(OSError), directories.opened_tokens():
            pass
        if (problem := listing.demands_problem or _problem_of_demands(directories)) is not None:
            findings.append(from_message("demands_refused", problem, paths))
    except DirectoryError as error:
        listing = None
        findings.append(from_message("directory_refused", str(error), paths))
    for risk in startup_checks.find_risks(directories, startup_checks.mountinfo()):
        risky = from_message("directory_risk", risk, paths)
        if all(finding.what != risky.what for finding in findings):
            findings.append(risky)
    findings += _shut_out(directories)
    if listing is not None and (problem := lock.find_problem(directories.import_lock)) is not None:
        findings.append(found("no_locks", problem))
    findings += _file_systems(directories)
    findings += _single_file_mounts(directories)
    return Places(listing, findings)


def check_history(directories: Directories) -> Iterator[Finding]:
    """Find why no event is kept, or none can be shown."""
    if (problem := _problem_of_history(directories)) is not None:
        yield from_message("history_unusable", problem, (directories.history, directories.state))


def _problem_of_history(directories: Directories) -> str | None:
    """Return why no event is kept, or none can be shown, and what to do; ``None`` also if there is no history yet."""
    path = directories.history
    reason = None
    try:
        if (problem := history.little_space(directories)) is not None or not os.path.lexists(path):
            return problem
        with history_file.explained(path), suppress(FileNotFoundError):
            history_file.check_private(path, before := path.lstat())
            if before.st_size and not history_file.side_file(path, "-journal").exists():  # else, it is just being made
                reason = _damage(path)
            if _state(before) != _state(path.lstat()):
                return None  # it was written meanwhile
    except StorageError as error:
        return str(error)
    return reason and (
        f"the history {path} cannot be read, as {reason}: wait for the next event, which renames it to "
        f"{path.name}{history_file.ASIDE} and begins a new one"
    )


def _damage(path: Path) -> str | None:
    """Look into the history without making the files of its log. Raises errors of SQLite."""
    try:
        with closing(history_file.open_existing(path, mode="ro&immutable=1")) as connection:
            connection.execute("SELECT id, at, name, event FROM event LIMIT 1").fetchall()
            if history_file.side_file(path, "-wal").exists():
                return None  # somebody uses it; without its log, the file need not be whole
            whole = connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except history_file.Empty:
        return None
    except history_file.Unusable as error:
        return str(error)
    except Exception as error:
        if not history_file.is_damage(error):
            raise
        whole = False
    return None if whole else "it is damaged"


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _problem_of_demands(directories: Directories) -> str | None:
    """Return why agents cannot use ``demands/``. Raises ``DirectoryError`` if each agent could remove all demands."""
    status: os.stat_result | None = None
    try:
        with suppress(OSError), directories.opened_demands() as descriptor:
            status = os.fstat(descriptor)
    except DirectoryError as error:
        return str(error)
    if status is not None:
        single_directory.check_sticky(directories.demands, status)
    return None


def _shut_out(directories: Directories) -> Iterator[Finding]:
    for parent in directories.closed_to_group():
        yield found(
            "group_shut_out",
            f"group {directories.group} cannot enter {parent}",
            f"chmod o+x {shlex.quote(str(parent))}",
        )


def _file_systems(directories: Directories) -> Iterator[Finding]:
    """Look at the space and the inodes of each file system, and whether it can be written."""
    seen: set[int] = set()
    for directory in (directories.grants, directories.tokens, directories.demands, directories.spill):
        try:
            place = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
            status, device = os.statvfs(place), place.stat().st_dev
        except OSError:
            continue  # the checks above say what is wrong with it
        if status.f_flag & os.ST_RDONLY:
            what = f"the file system of {directory} is read-only"
            if directory == directories.spill:
                yield found("directory_risk", f"{what}: it cannot store a token when grants/ cannot", "set --spill-dir")
            else:
                yield found("read_only", what)
        if device in seen:
            continue
        seen.add(device)
        free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        mend = f"delete what is not needed there; 'df {shlex.quote(str(place))}' shows it"
        if free < _NO_SPACE:
            yield found("no_space", f"the file system of {directory} has {free // 1024} KiB left", mend)
        elif free < min(_LITTLE_SPACE, _LITTLE * size):
            yield found("little_space", f"the file system of {directory} has {free // _MEBIBYTE} MiB left", mend)
        if not status.f_files:
            continue  # some kinds have no fixed number of inodes
        inodes, mend = status.f_favail, mend.replace("'df ", "'df -i ")
        if inodes < _NO_INODES:
            yield found("no_space", f"the file system of {directory} has room for {inodes} more files", mend)
        elif inodes < min(_FEW_INODES, _LITTLE * status.f_files):
            yield found("little_space", f"the file system of {directory} has room for {inodes} more files", mend)


def _single_file_mounts(directories: Directories) -> Iterator[Finding]:
    mounts = write_access.mount_points()
    for directory in (directories.grants, directories.tokens):
        real = Path(os.path.realpath(directory))
        for place in sorted(mounts):
            if place.parent == real and os.path.isfile(place):  # noqa: PTH113  does not raise
                mend = f"mount all of {directory} instead, after 'umount {shlex.quote(str(place))}'"
                yield found("single_file_mount", f"{place} is a mount of a single file", mend)
