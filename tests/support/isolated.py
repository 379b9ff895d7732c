"""A process with its own root, as in a container: programs and given directories, all read-only except its volumes."""

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
    """A directory of this machine, and its path in the process."""

    source: Path
    at: str
    writable: bool = False


def missing() -> str | None:
    """Return what must be installed or allowed; ``None`` if nothing is missing."""
    if os.geteuid() != 0:
        return "a separate root, and other users, need root"
    without = [program for program in ("unshare", "nsenter", "setpriv", "mount") if shutil.which(program) is None]
    return f"{without[0]} is not installed" if without else None


def isolated(root: Path, given: Sequence[Given], command: Sequence[str], *, writable: bool = False) -> list[str]:
    """Return the command that runs ``command`` isolated; ``root``: an empty directory for its root."""
    lines = [["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root)]]
    for path in (Path("/", name) for name in _PROGRAMS):
        if path.is_symlink():
            lines.append(["ln", "-s", str(path.readlink()), str(root / path.name)])
        elif path.is_dir():
            lines += _bind(root, Given(path, str(path)))
    # Python may be installed anywhere.
    for path in (Path("/dev"), Path(sys.base_prefix)):
        lines += _bind(root, Given(path, str(path)))
    lines += [["mkdir", str(root / "proc")], ["mount", "-t", "proc", "proc", str(root / "proc")]]
    for directory in given:
        lines += _bind(root, directory)
    if not writable:
        lines.append(["mount", "-o", "remount,ro", str(root)])
    lines += [["cd", str(root)], ["exec", "chroot", ".", *command]]
    script = "umask 022\n" + "\n".join(map(shlex.join, lines))
    return ["unshare", "--mount", "--pid", "--fork", "sh", "-euc", script]


def as_user(user: int, group: int, groups: Sequence[int], environment: Mapping[str, str]) -> list[str]:
    """Return a command prefix that sets user, groups and environment, and drops all other rights."""
    return [
        *("setpriv", f"--reuid={user}", f"--regid={group}", "--inh-caps=-all", "--bounding-set=-all"),
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        *("--no-new-privs", "--", "env", "-i"),
        *(f"{name}={value}" for name, value in environment.items()),
    ]


def _bind(root: Path, directory: Given) -> list[list[str]]:
    place = str(root / directory.at.lstrip("/"))
    bound = [["mkdir", "-p", place], ["mount", "--bind", str(directory.source), place]]
    return bound if directory.writable else [*bound, ["mount", "-o", "remount,bind,ro", place]]
