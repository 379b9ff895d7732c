"""Where the files are, and who may read them."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.errors import DirectoryError
from refresher.storage import files
from shim._token import is_name

__all__ = ["Directories", "Listing", "Sharing"]

_SHARED_TOKENS: Final = 0o750

_NEXT: Final = re.compile(r"(?P<name>.+)\.next(\.\d+)?")


Sharing = tuple[int, int | None]
"""The permissions and the group of token files; ``None`` leaves the group as it is."""


class Listing(msgspec.Struct, frozen=True):
    """The valid names in ``grants/`` that have a record, and those for which an attempt left files."""

    names: tuple[str, ...] = ()
    unfinished: frozenset[str] = frozenset()
    sharing: Sharing | None = None
    """What ``sharing`` returned at the time of the listing; ``None``: not read."""

    @property
    def all(self) -> list[str]:
        """Both; an import that was interrupted may have left files and no record."""
        return sorted({*self.names, *self.unfinished})


class Directories(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of one refresher; ``group`` is the number of the group that may read tokens, if any."""

    state: Path
    tokens: Path
    demands: Path
    spill: Path
    group: int | None = None

    @property
    def grants(self) -> Path:
        """The directory of the private records."""
        return self.state / "grants"

    @property
    def import_lock(self) -> Path:
        """The lock that every import and login holds, so that two cannot store one refresh token under two names."""
        return self.grants / ".import.lock"

    def record(self, name: str) -> Path:
        """Return the path of the private record."""
        return self.grants / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Return the path of the lock over all files of ``name``. The file is never removed."""
        return self.grants / f"{name}.lock"

    def intent(self, name: str) -> Path:
        """Return the path of the intent: it declares an attempt."""
        return self.grants / f"{name}.intent"

    def next(self, name: str) -> Path:
        """Return the path of the space reserved for the next record."""
        return self.grants / f"{name}.next"

    def barred(self, name: str) -> Path:
        """Return the path of the generation up to which demands do not count; it is there only if one was planted."""
        return self.grants / f"{name}.barred"

    def fresh(self, name: str) -> Path:
        """Return a new path for the next record, after writing the reserved one failed."""
        return files.unused(self.next(name), 1)

    def spilled(self, name: str, begun_from: str) -> Path:
        """Return the path of the next record outside ``grants/``; each record has another path."""
        return self.spill / f"{name}.{begun_from[:32]}.next"

    def candidates(self, name: str) -> list[Path]:
        """Return the files in ``grants/`` that may hold the next record of ``name``. Raises ``OSError``."""
        entries = sorted(os.listdir(self.grants))  # noqa: PTH208  plain names
        return [self.grants / entry for entry in entries if (match := _NEXT.fullmatch(entry)) and match["name"] == name]

    def token(self, name: str) -> Path:
        """Return the path of the published token file."""
        return self.tokens / f"{name}.json"

    def sharing(self) -> Sharing:
        """Return the permissions and the group of token files.

        Without a group, a shared tokens directory stays shared: a run by hand without the option must not lock the
        agents out.
        """
        if self.group is not None:
            return 0o640, self.group
        try:
            status = self.tokens.stat()
        except OSError:
            return 0o600, None
        shared = stat.S_IMODE(status.st_mode) == _SHARED_TOKENS
        return (0o640, status.st_gid) if shared else (0o600, None)

    def closed_to_group(self) -> list[Path]:
        """Return the directories above tokens and demands that the group cannot traverse."""
        return [
            parent
            for parent in dict.fromkeys((*reversed(self.tokens.parents), *reversed(self.demands.parents)))
            if self.group is not None and not _lets_pass(parent, self.group)
        ]

    def listing(self) -> Listing:
        """List ``grants/``; nothing if it does not exist yet. Raises ``DirectoryError``."""
        from_names, unfinished = [], set()
        try:
            self._check_private(self.grants)
            entries = os.listdir(self.grants)  # noqa: PTH208  plain names
        except FileNotFoundError:
            return Listing()
        except OSError as error:
            raise DirectoryError(f"cannot read {self.grants}: {error.strerror}") from None
        for entry in entries:
            stem, _, suffix = entry.rpartition(".")
            if suffix == "json":
                from_names.append(stem)
            elif suffix == "intent":
                unfinished.add(stem)
            elif suffix != "lock" and (match := _NEXT.fullmatch(entry)):
                unfinished.add(match["name"])
        names = tuple(sorted(filter(is_name, from_names)))
        return Listing(names, frozenset(filter(is_name, unfinished)), self.sharing())

    def ensure(self) -> None:
        """Create the directories that are missing, with the modes of the README, independent of the umask.

        Raises ``DirectoryError`` if a directory cannot be created, or if other users could read ``grants/``.
        """
        if (trouble := self.prepare()) is not None:
            raise DirectoryError(trouble)

    def prepare(self) -> str | None:
        """Do as ``ensure`` does, but return what is wrong with ``demands/``: the schedule does not need it."""
        shared = self.group is not None
        passed = 0o711 if shared else 0o700
        with self._explained():
            _make(self.state, passed, None, parents=passed)
            _make(self.grants, 0o700, None, parents=passed)
            _make(self.tokens, _SHARED_TOKENS if shared else 0o700, self.group, parents=passed)
            self._check_private(self.grants)
            _check_tokens(self.tokens)
        try:
            with self._explained():
                _make(self.demands, 0o3770 if shared else 0o700, self.group, parents=passed)
                mode = _check_directory(self.demands).st_mode
        except DirectoryError as error:
            return str(error)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise DirectoryError(f"anybody can write to {self.demands} and remove demands: run 'chmod o-w' on it")
        return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            group = "" if self.group is None else f" (is this user in group {self.group}?)"
            raise DirectoryError(f"cannot create or share {error.filename}: {error.strerror}{group}") from None
        except OSError as error:
            raise DirectoryError(f"cannot create {error.filename or self.state}: {error.strerror}") from None

    def _check_private(self, directory: Path) -> None:
        status = directory.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise DirectoryError(f"{directory} is a symbolic link: make the state directory the link instead")
        if not stat.S_ISDIR(status.st_mode):
            raise DirectoryError(f"{directory} is not a directory")
        if status.st_uid != os.geteuid():
            raise DirectoryError(
                f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}: run it as its owner"
            )
        if status.st_mode & 0o077:
            raise DirectoryError(f"others can read {directory}, which holds refresh tokens: run 'chmod 700' on it")


def _check_directory(directory: Path) -> os.stat_result:
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{directory} is not a directory")
    return status


def _check_tokens(directory: Path) -> None:
    status = _check_directory(directory)
    # A sticky bit would not help: anybody could create a token file that does not exist yet.
    if status.st_mode & stat.S_IWOTH:
        raise DirectoryError(
            f"anybody can write to {directory} and replace the tokens that agents trust: run 'chmod o-w' on it"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(
            f"{directory} belongs to user {status.st_uid}, who could replace the tokens that agents trust: "
            f"run 'chown {os.geteuid()}' on it"
        )


def _lets_pass(directory: Path, group: int) -> bool:
    try:
        status = directory.stat()
    except OSError:
        return True  # it does not exist yet, and is created with the right mode
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH))


def _make(directory: Path, mode: int, group: int | None, *, parents: int) -> None:
    if not directory.exists():
        files.make_directories(directory.parent, parents)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            return  # another process has just created it
        files.sync_directory(directory.parent)
        if group is None:
            directory.chmod(mode)
    elif group is None and mode == 0o711:
        # Agents of the group traverse the state directory on the way to their tokens.
        directory.chmod(directory.stat().st_mode & 0o7777 | 0o111)
    if group is not None:
        _share(directory, mode, group)


def _share(directory: Path, mode: int, group: int) -> None:
    """Give a directory to the group, but not through the link of another user: it may lead to the grants."""
    status = directory.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link and status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(f"{directory} is a link of user {status.st_uid}, and may lead to private files: remove it")
    try:
        # O_NOFOLLOW: another user may put a link in its place meanwhile.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if is_link else os.O_NOFOLLOW)
        descriptor = os.open(directory, flags)
    except NotADirectoryError:
        raise DirectoryError(f"{directory} is not a directory") from None
    try:
        status = os.fstat(descriptor)
        if status.st_gid != group:
            os.fchown(descriptor, -1, group)
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
    finally:
        os.close(descriptor)
