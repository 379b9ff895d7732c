"""What a person should know about the places before something goes wrong there; none of it is a reason to refuse."""

import logging
import os
import stat
from pathlib import Path
from typing import Final

from refresher.storage import mounts
from refresher.storage.directories import Directories

__all__ = ["cautions", "tell"]

_MOUNTS: Final = Path("/proc/self/mountinfo")
_TOLD: Final[set[str]] = set()

log = logging.getLogger(__name__)


def tell(directories: Directories, level: int = logging.WARNING) -> None:
    """Log each caution once in this process."""
    for caution in cautions(directories, _mountinfo()):
        if caution not in _TOLD:
            _TOLD.add(caution)
            log.log(level, "warning: %s", caution)


def cautions(directories: Directories, mountinfo: str) -> list[str]:
    """Return what is to be known, one line each; ``mountinfo`` is what the kernel says of its mounts."""
    return [*_of_grants(directories.grants, mountinfo), *_of_spill(directories.spill, mountinfo)]


def _of_grants(grants: Path, mountinfo: str) -> list[str]:
    found = []
    if (there := _kind(grants, mountinfo)) in mounts.REMOTE:
        found.append(
            f"{grants} is on a network file system ({there}), whose locks may not keep two machines apart: let one "
            "machine alone run refresher on it"
        )
    for parent in grants.parents:
        mode = _mode(parent)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            found.append(f"anybody can write in {parent}, and so take {grants} away: chmod o-w it")
    return found


def _of_spill(spill: Path, mountinfo: str) -> list[str]:
    try:
        status = spill.lstat()
    except OSError:
        status = None  # made when it is needed
    if status is not None and not (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    ):
        return [
            f"{spill} takes no token that grants/ cannot take: it must be a directory of user {os.geteuid()} and of "
            "nobody else (chmod 700); mend it, or give another with --spill-dir"
        ]
    if (there := _kind(spill, mountinfo)) in mounts.IN_MEMORY:
        return [
            f"{spill} is in memory ({there}): a token that is kept there would not outlive the machine's restart; give "
            "--spill-dir a directory on a disk"
        ]
    return []


def _kind(path: Path, mountinfo: str) -> str | None:
    for there in (path, *path.parents):
        try:
            return mounts.kind(there.stat().st_dev, mountinfo)
        except OSError:
            continue  # made when it is needed, in what leads to it
    return None


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _mountinfo() -> str:
    try:
        return _MOUNTS.read_text("utf-8", "replace")
    except OSError:
        return ""  # not Linux, or hidden: then nobody can tell
