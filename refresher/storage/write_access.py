"""Who else can replace a directory: by its group, by a link on the way to it, or in a directory above it."""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Found", "find", "is_mount_point", "mount_points", "risk", "writers"]

_MOST_LINKS: Final = 40
_REMEMBERED: Final = 600.0
"""Seconds."""
_MOUNTS: Final = Path("/proc/self/mountinfo")


class Found(NamedTuple):
    """Where a path leads, links followed, whether or not it exists."""

    entries: tuple[tuple[Path, os.stat_result], ...]
    """Every directory and link on the way, with its ``lstat``; the first is the root."""
    missing: tuple[str, ...]
    """What does not exist yet below the last directory."""

    @property
    def directory(self) -> tuple[Path, os.stat_result]:
        """The last directory (or file) that exists."""
        return self.entries[-1]

    @property
    def identity(self) -> tuple[int, int, tuple[str, ...]]:
        """Equal for two paths to one directory, also to one that does not exist yet."""
        _, status = self.directory
        return status.st_dev, status.st_ino, self.missing

    @property
    def place(self) -> Path:
        """Where the path leads, without a link."""
        return self.directory[0].joinpath(*self.missing)

    @property
    def trusted(self) -> tuple[int, ...]:
        """The users who may own what is on the way: this one and root."""
        # Where the ids of root are not mapped (a user namespace), the owner of the root directory stands for root.
        return 0, os.geteuid(), self.entries[0][1].st_uid

    @property
    def link_of_another(self) -> tuple[Path, int] | None:
        """The first link of a user who is neither this one nor root, and that user."""
        return next(
            (
                (path, status.st_uid)
                for path, status in self.entries
                if stat.S_ISLNK(status.st_mode) and status.st_uid not in self.trusted
            ),
            None,
        )

    def above(self) -> Iterator[tuple[Path, os.stat_result, Path]]:
        """Return each directory in which the way could be changed, with its status and the entry in it."""
        statuses = dict(self.entries)
        for entry, _ in self.entries[1:]:
            yield entry.parent, statuses[entry.parent], entry
        if self.missing:
            path, status = self.directory
            yield path, status, path / self.missing[0]


def find(path: Path) -> Found:
    """Follow an absolute path one entry at a time. Raises ``OSError``."""
    here = Path(path.root)
    entries = [(here, here.lstat())]
    todo, missing, links = list(reversed(path.parts[1:])), Path(), 0
    while todo:
        if (name := todo.pop()) == "..":
            here = here.parent
            continue
        entry = here / name
        try:
            status = entry.lstat()
        except FileNotFoundError:
            missing = Path(name, *reversed(todo))
            if ".." not in missing.parts:
                break
            todo, missing = list(reversed(Path(os.path.normpath(missing)).parts)), Path()
            continue
        entries.append((entry, status))
        if not stat.S_ISLNK(status.st_mode):
            here = entry
            continue
        if (links := links + 1) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = entry.readlink()
        here = Path(target.root) if target.root else here
        todo.extend(reversed(target.parts[1:] if target.root else target.parts))
    if entries[-1][0] != here:
        entries.append((here, here.lstat()))  # a link, or '..', led to a directory above
    return Found(tuple(entries), missing.parts)


def risk(path: Path) -> str | None:
    """Return how another user could change or replace the file at ``path``, and the command that prevents it.

    Raises ``OSError``.
    """
    found = find(path)
    if (link := found.link_of_another) is not None:
        return f"user {link[1]} can change {link[0]}, which is a link: give the path of the file itself"
    for place, status, entry in ((*found.directory, None), *found.above()):
        here = f"change {place}" if entry is None else f"write in {place} and replace {entry}"
        if status.st_uid not in found.trusted:
            return f"user {status.st_uid} can {here}: run 'chown {os.geteuid()} {place}'"
        who = writers(status)
        if who is None or (entry is not None and status.st_mode & stat.S_ISVTX) or _is_read_only(place):
            continue
        return f"{who} can {here}: run 'chmod {'o' if who == 'anybody' else 'g'}-w {place}'"
    return None


def _is_read_only(path: Path) -> bool:
    """Whether the file system is mounted to be read only, as a ConfigMap is, whose directory has the mode 0777."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def writers(status: os.stat_result) -> str | None:
    """Return who can write in a directory besides its owner: anybody, or a group other than the owner's private one."""
    if status.st_mode & stat.S_IWOTH:
        return "anybody"
    if status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid, status.st_uid):
        return f"group {status.st_gid}"
    return None


def _is_private_group(group: int, user: int) -> bool:
    return _has_no_other_member(group, user, int(time.monotonic() / _REMEMBERED))


@lru_cache(maxsize=64)  # users can be in a directory server, which is slow
def _has_no_other_member(group: int, user: int, _period: int) -> bool:
    """Whether a group is the primary one of ``user``, and has no other member that this machine knows."""
    import grp  # a directory that a group can write is rare
    import pwd

    try:
        owner = pwd.getpwuid(user)
    except KeyError:
        # In a container, users often have no name.
        name, primary = None, os.getgid() if user == os.geteuid() else None
    else:
        name, primary = owner.pw_name, owner.pw_gid
    try:
        members = set(grp.getgrgid(group).gr_mem)
    except KeyError:
        members = set()
    return (
        group == primary
        and members <= {name}
        and all(other.pw_uid in (0, user) for other in pwd.getpwall() if other.pw_gid == group)
    )


def is_mount_point(directory: Path) -> bool:
    """Whether a file system is mounted at ``directory``, a part of the same one included."""
    return os.path.ismount(directory) or directory in mount_points()


def mount_points() -> frozenset[Path]:
    """Return where file systems are mounted, also on single files; nothing if that is not known."""
    try:
        mounts = _MOUNTS.read_bytes()
    except OSError:
        return frozenset()  # not Linux, or hidden
    places = (line.split()[4] for line in mounts.splitlines() if len(line.split()) > 4)
    # The kernel writes spaces, tabs, line breaks and backslashes in octal.
    decoded = (re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), place) for place in places)
    return frozenset(Path(os.fsdecode(place)) for place in decoded)
