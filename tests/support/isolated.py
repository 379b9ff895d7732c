"""A process with a root of its own, as containers have: programs and what it is given, all of it read-only but its volumes."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Given", "as_user", "isolated", "missing"]

_PROGRAMS: Final = ("bin", "lib", "lib32", "lib64", "sbin", "usr", "etc", "opt")


class Given(NamedTuple):
    """A directory of this machine, and where the process finds it."""

    source: Path
    at: str
    writable: bool = False


def missing() -> str | None:
    """Return what is needed for it here, ``None`` if nothing."""
    if os.geteuid() != 0:
        return "a root of its own, and other users, need root"
    without = [program for program in ("unshare", "nsenter", "setpriv", "mount") if shutil.which(program) is None]
    return f"{without[0]} is not installed" if without else None


def isolated(root: Path, given: Sequence[Given], command: Sequence[str], *, writable: bool = False) -> list[str]:
    """Return the command that runs ``command`` so; ``root``: an empty directory to make it in."""
    lines = [["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root)]]
    for there in (Path("/", name) for name in _PROGRAMS):
        if there.is_symlink():
            lines.append(["ln", "-s", str(there.readlink()), str(root / there.name)])
        elif there.is_dir():
            lines += _bound(root, Given(there, str(there)))
    # Python itself may be anywhere.
    for there in (Path("/dev"), Path(sys.base_prefix)):
        lines += _bound(root, Given(there, str(there)))
    lines += [["mkdir", str(root / "proc")], ["mount", "-t", "proc", "proc", str(root / "proc")]]
    for directory in given:
        lines += _bound(root, directory)
    if not writable:
        lines.append(["mount", "-o", "remount,ro", str(root)])
    lines += [["cd", str(root)], ["exec", "chroot", ".", *command]]
    script = "umask 022\n" + "\n".join(map(shlex.join, lines))
    return ["unshare", "--mount", "--pid", "--fork", "sh", "-euc", script]


def as_user(user: int, group: int, groups: Sequence[int], environment: Mapping[str, str]) -> list[str]:
    """Return what goes before a command to give it a user, no right beyond that, and these variables alone."""
    return [
        *("setpriv", f"--reuid={user}", f"--regid={group}", "--inh-caps=-all", "--bounding-set=-all"),
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        *("--no-new-privs", "--", "env", "-i"),
        *(f"{name}={value}" for name, value in environment.items()),
    ]


def _bound(root: Path, directory: Given) -> list[list[str]]:
    place = str(root / directory.at.lstrip("/"))
    bound = [["mkdir", "-p", place], ["mount", "--bind", str(directory.source), place]]
    return bound if directory.writable else [*bound, ["mount", "-o", "remount,bind,ro", place]]
