"""Checks at the start: risks of the directories that cause warnings, not errors."""

import logging
import os
from pathlib import Path
from typing import Final

from refresher.storage import files
from refresher.storage.directories import Directories

__all__ = ["file_system", "find_risks", "is_shared", "mountinfo", "warn"]

_IN_MEMORY: Final = frozenset({"ramfs", "tmpfs"})
_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs fuse.ceph fuse.gcsfuse fuse.glusterfs fuse.rclone fuse.s3fs fuse.sshfs gfs2 gpfs lustre "  # noqa: SIM905
    "nfs nfs4 ocfs2 smb3 smbfs virtiofs".split()
)

_MOUNTS: Final = Path("/proc/self/mountinfo")

log = logging.getLogger(__name__)


def is_shared(directory: Path) -> bool:
    """Whether others can change what is in ``directory`` without Linux here reporting it: another machine, or FUSE."""
    kind = _file_system_of(directory, mountinfo())
    return kind is not None and (kind in _NETWORK or kind.startswith("fuse"))


def warn(directories: Directories, warned: set[str], level: int = logging.WARNING) -> None:
    """Log each risk that is not yet in ``warned``, and add it."""
    for risk in find_risks(directories, mountinfo()):
        if risk not in warned:
            warned.add(risk)
            log.log(level, "warning: %s", risk)


def find_risks(directories: Directories, mounts: str) -> list[str]:
    """Return one line for each risk; ``mounts`` is what ``mountinfo`` returns."""
    grants, spill, found = directories.grants, directories.spill, []
    if (kind := _file_system_of(grants, mounts)) in _NETWORK:
        found.append(
            f"{grants} is on a network file system ({kind}), whose locks may not work between machines: run refresher "
            "on one machine only"
        )
    found += directories.risks_above()
    mode, group = directories.sharing()
    if directories.group is None and mode == 0o640:
        found.append(
            f"group {group} can read the access tokens in {directories.tokens}, which has the mode of a shared "
            f"directory: if it should, set --tokens-group {group}; if not, run 'chmod 700' on it"
        )
    try:
        private = files.is_private(spill)
    except OSError:
        private = True  # refresher creates it when it needs it
    if not private:
        found.append(
            f"{spill} cannot store a token when grants/ cannot: it must be a directory of user {os.geteuid()} with "
            "mode 700; repair it, or set another with --spill-dir"
        )
    elif (kind := _file_system_of(spill, mounts)) in _IN_MEMORY:
        found.append(
            f"{spill} is in memory ({kind}), and a token stored there is lost when the machine restarts: set "
            "--spill-dir to a directory on a disk"
        )
    return found


def mountinfo() -> str:
    """Return the content of ``/proc/self/mountinfo``; empty if there is none."""
    try:
        return _MOUNTS.read_text("utf-8", "replace")
    except OSError:
        return ""  # not Linux, or hidden


def _file_system_of(path: Path, mounts: str) -> str | None:
    for existing in (path, *path.parents):
        try:
            return file_system(existing.stat().st_dev, mounts)
        except OSError:
            continue  # refresher creates it later, in this parent
    return None


def file_system(device: int, mounts: str) -> str | None:
    """Return the type of the file system on ``device`` (a ``st_dev``); ``None`` if ``mounts`` has no entry."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        # The number of fields before the dash varies, and no other field is a single dash.
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2:3] == [number]:
            return next(iter(filesystem.split()), None)
    return None
