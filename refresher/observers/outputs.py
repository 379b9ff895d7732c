"""Outputs: keeps files and Secrets with access tokens up to date. Each is derived from a token file, and nothing else.

A broken output delays the others by five seconds at most, and no rotation.
"""

import errno
import grp
import hashlib
import logging
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from refresher.common import reading
from refresher.common.errors import RefresherError
from refresher.common.reading import FileWithStatus
from refresher.common.throttle import Throttle
from refresher.grants.outputs import FileOutput, Output, SecretOutput, render, was_rendered
from refresher.operations.events import Event
from refresher.storage import files, lock, records, single_directory
from refresher.storage.directories import Directories
from shim._token import TokenFile, parse
from shim.errors import TokenFileError

__all__ = ["EVERY", "Outputs", "bring_up_to_date", "look", "problems"]

log = logging.getLogger(__name__)

EVERY: Final = Event(at=0.0, name="", kind="published")
"""Has this observer check all outputs; no other observer gets it."""

_DEADLINE: Final = 4.0
"""Seconds for the lock and the work. It is shorter than the time that ``reading`` waits for a call."""
_LOCK_WAIT: Final = 2.0
_REPEAT: Final = 600.0
"""Seconds until a Secret is applied again whose token is the same."""

Applied = dict[str, tuple[bytes, float]]
"""By the target of a Secret: a digest of the token that was applied last, and when (monotonic seconds)."""

Claimed = dict[tuple[int, int, str], Path]
"""By the directory and the name of a file: the path of the output that writes it."""

_FAULTS: Final = {
    errno.ENOENT: "its directory does not exist: create the directory",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        "refresher may not write there, or not give the file to its owner or group: change the directory or the output",
    ),
    errno.EROFS: "its file system is read-only: mount it writable, or give another path",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "its file system is full: make room"),
}


class Outputs:
    """Brings the outputs of the grants up to date to which something has happened."""

    name = "outputs"
    patience = 6.0

    def __init__(self, outputs: Sequence[Output], directories: Directories) -> None:
        self._outputs: Final = outputs
        self._directories: Final = directories
        self._throttle: Final = Throttle()
        self._applied: Final[Applied] = {}
        self._claimed: Final[Claimed] = {}

    def observe(self, events: Sequence[Event]) -> None:
        """Compare the outputs of these grants with their token files, and write those that differ."""
        names = {event.name for event in events}
        chosen = [each for each in self._outputs if EVERY.name in names or each.grant in names]
        work = partial(bring_up_to_date, applied=self._applied, claimed=self._claimed)
        for output, problem in problems(chosen, self._directories, work):
            if problem is None:
                self._throttle.forget(output.target)
            elif self._throttle.is_new(output.target, problem):
                log.warning("%s: the output %s is not up to date: %s", output.grant, output.target, problem)

    def close(self) -> None:
        """Do nothing: it holds nothing open."""


def problems(
    outputs: Sequence[Output], directories: Directories, work: Callable[[Output, Directories], None]
) -> Iterator[tuple[Output, str | None]]:
    """Do ``work`` for each output, all at once; return what is wrong and what to do, or ``None``.

    It waits 5 s at most. A call that still hangs is not repeated.
    """
    chosen = {output.target: output for output in outputs}
    calls = {target: partial(_problem, work, output, directories) for target, output in chosen.items()}
    for target, problem in reading.run_all(calls).items():
        if isinstance(problem, OSError):
            problem = "it does not answer in time: check its mount, or the API of the cluster"
        yield chosen[target], problem


def _problem(work: Callable[[Output, Directories], None], output: Output, directories: Directories) -> str | None:
    try:
        work(output, directories)
    except (RefresherError, TokenFileError, ValueError) as error:
        return str(error)
    except OSError as error:
        if isinstance(output, SecretOutput):
            return f"cannot read {error.filename}: {error.strerror}"
        return _FAULTS.get(error.errno or 0, error.strerror or "the disk fails")
    except Exception as error:  # noqa: BLE001  the others are written
        return f"internal error ({type(error).__name__}); please report it"
    return None


def bring_up_to_date(
    output: Output, directories: Directories, *, applied: Applied | None = None, claimed: Claimed | None = None
) -> None:
    """Write the output if it differs from its token file; remove it if there is no access token any more.

    If no token file exists yet, nothing is done. ``applied`` and ``claimed`` are read and kept up to date. Raises
    ``RefresherError``, ``TokenFileError``, ``ValueError`` and ``OSError``.
    """
    applied, claimed = {} if applied is None else applied, {} if claimed is None else claimed
    ends = time.monotonic() + _DEADLINE
    token = _token(directories, output.grant)
    if token is None:
        return
    if isinstance(output, SecretOutput):
        digest, when = applied.get(output.target, (b"", 0.0))
        if digest == _digest(token) and time.monotonic() - when < _REPEAT:
            return
    elif _write(output, token, directories, claimed, change=False):
        return
    # Two processes must not use one temporary file, and none may write an older token after a newer one.
    name = f"output-{hashlib.sha256(os.fsencode(output.target)).hexdigest()[:16]}.lock"
    with lock.held(directories.state / name, stopping=lambda: False, wait=_LOCK_WAIT):
        if (token := _token(directories, output.grant)) is None:
            return
        if isinstance(output, SecretOutput):
            from refresher.observers import kubernetes_secret  # loads an HTTP library

            kubernetes_secret.apply(output, token.access_token, seconds=ends - time.monotonic())
            applied[output.target] = _digest(token), time.monotonic()
        elif not _write(output, token, directories, claimed, change=True):
            log.info("%s: wrote the output %s", output.grant, output.target)


def look(output: Output, directories: Directories, *, claimed: Claimed | None = None) -> None:
    """Raise what ``bring_up_to_date`` would, and ``ValueError`` if it would write. Change nothing, send no token."""
    if isinstance(output, SecretOutput):
        from refresher.observers import kubernetes_secret

        kubernetes_secret.apply(output, None, dry_run=True)
    elif (token := _token(directories, output.grant)) is not None and not _write(
        output, token, directories, {} if claimed is None else claimed, change=False
    ):
        raise ValueError("it differs from the token file: run 'refresher run-once'")


def _token(directories: Directories, name: str) -> TokenFile | None:
    path = directories.token(name)
    try:
        found = files.read(path, records.LARGEST)
    except OSError as error:
        why = error.strerror or "the disk fails"
        raise TokenFileError(f"cannot read the token file {path}: {why}: run 'refresher doctor'") from None
    token = None if found is None else parse(found.data)
    if token is not None and token.name != name:
        raise TokenFileError(f"the token file of {name} is that of {token.name}; refresher replaces it at the next run")
    return token


def _digest(token: TokenFile) -> bytes:
    return hashlib.sha256((token.access_token or "").encode()).digest()


def _write(output: FileOutput, token: TokenFile, directories: Directories, claimed: Claimed, *, change: bool) -> bool:
    """Return whether the file was up to date; if not, and if ``change``, write or remove it."""
    wanted = render(output, token)
    if wanted is None and not output.path.parent.exists():
        return True
    owner = _number("user", output.owner, lambda name: pwd.getpwnam(name).pw_uid)
    group = _number("group", output.group, lambda name: grp.getgrnam(name).gr_gid)
    with single_directory.opened(output.path.parent) as directory:
        for own in (directories.state, directories.grants, directories.tokens, directories.demands, directories.spill):
            if _is_same(directory, own):
                raise ValueError(f"{own} is a directory of refresher: give another path")
        _claim(output.path, directory, claimed)
        try:
            found = files.read(output.path.name, records.LARGEST, directory=directory)
            if found is not None and not was_rendered(found.data, output):
                raise ValueError("there is a file with other content")  # noqa: TRY301  as the others
        except ValueError as error:
            raise ValueError(f"{error}: remove the file, or give the output a path of its own") from None
        if wanted is None or found is None:
            done = wanted is None and found is None
        else:
            done = found.data == wanted and _has(found, output.mode, owner, group)
        if change and not done and wanted is None:
            with suppress(FileNotFoundError):
                os.unlink(output.path.name, dir_fd=directory)
        elif change and not done and wanted is not None:
            files.replace(directory, output.path.name, wanted, mode=output.mode, owner=owner, group=group)
    return done


def _claim(path: Path, directory: int, claimed: Claimed) -> None:
    """Refuse a file that another output writes through a link or a second mount. Raises ``ValueError``."""
    status = os.fstat(directory)
    place = (status.st_dev, status.st_ino, path.name)
    other = claimed.setdefault(place, path)
    # The other directory may be gone, and this one may have its number.
    if other != path and _is_same(directory, other.parent):
        raise ValueError(f"it is the same file as the output {other}: give each a path of its own")
    claimed[place] = path


def _has(found: FileWithStatus, mode: int, owner: int | None, group: int | None) -> bool:
    status = found.status
    return stat.S_IMODE(status.st_mode) == mode and owner in (None, status.st_uid) and group in (None, status.st_gid)


def _is_same(directory: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(directory), path.stat())
    return False


def _number(kind: str, account: str | int | None, find: Callable[[str], int]) -> int | None:
    """Return the number of a user or a group. Raises ``ValueError``."""
    if not isinstance(account, str):
        return account
    try:
        return find(account)
    except KeyError:
        raise ValueError(f"there is no {kind} {account!r}: create it, or correct the output") from None
