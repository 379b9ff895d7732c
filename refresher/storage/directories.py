"""Where the files are, and who may look at them (DESIGN section 1)."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.errors import DirectoryError
from refresher.storage import files

__all__ = ["Directories", "Listing", "Opened", "Sharing"]

_SHARED_TOKENS: Final = 0o750

_FRESH: Final = re.compile(r"(?P<name>.+)\.next\.\d+")


Sharing = tuple[int, int | None]
"""The permissions and the group of token files; ``None``: whichever they are of."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever looks at many names asks once: where their files are found, and how tokens are shared."""

    grants: int | None
    """A descriptor; ``None`` where it could not be opened."""
    tokens: int | None
    sharing: Sharing


class Listing(msgspec.Struct, frozen=True):
    """What lies in ``grants/``: names that have a record, and names where an attempt left something."""

    names: tuple[str, ...]
    unfinished: frozenset[str]


class Directories(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of one refresher; ``group`` is the numeric group that may read tokens, if there is one."""

    state: Path
    tokens: Path
    demands: Path
    spill: Path
    group: int | None = None

    @property
    def grants(self) -> Path:
        """Private records: the refresher's own."""
        return self.state / "grants"

    @property
    def import_lock(self) -> Path:
        """Held by whoever stores a refresh token that no record holds yet."""
        return self.grants / ".import.lock"

    def record(self, name: str) -> Path:
        """Return the path of the private record."""
        return self.grants / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Return the path of the lock over everything of ``name``; never unlinked."""
        return self.grants / f"{name}.lock"

    def intent(self, name: str) -> Path:
        """Return the path of the note that an exchange is under way."""
        return self.grants / f"{name}.intent"

    def next(self, name: str) -> Path:
        """Return the path of the space that is reserved for the next record."""
        return self.grants / f"{name}.next"

    def fresh(self, name: str) -> Path:
        """Return a path for the next record where the reserved one cannot be trusted any more."""
        count = 1
        while os.path.lexists(path := self.grants / f"{name}.next.{count}"):
            count += 1
        return path

    def spilled(self, name: str, begun_from: str) -> Path:
        """Return the path of the next record outside ``grants/``; of each record another."""
        return self.spill / f"{name}.{begun_from[:32]}.next"

    def candidates(self, name: str) -> list[Path]:
        """Return the files in ``grants/`` that may hold the next record of ``name``. Raises ``OSError``."""
        reserved = f"{name}.next"
        fresh = re.compile(re.escape(reserved) + r"\.\d+")
        entries = sorted(os.listdir(self.grants))  # noqa: PTH208  plain names
        return [self.grants / entry for entry in entries if entry == reserved or fresh.fullmatch(entry)]

    def token(self, name: str) -> Path:
        """Return the path of the published token file."""
        return self.tokens / f"{name}.json"

    def sharing(self) -> Sharing:
        """Return the permissions and the group of token files.

        Where no group is given, a tokens directory that was shared stays so: a run by hand without the option must
        not lock the agents out.
        """
        if self.group is not None:
            return 0o640, self.group
        try:
            status = self.tokens.stat()
        except OSError:
            return 0o600, None
        shared = stat.S_IMODE(status.st_mode) == _SHARED_TOKENS
        return (0o640, status.st_gid) if shared else (0o600, None)

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Hold the directories open, so that no file's path is walked from the root."""
        with ExitStack() as stack:
            yield Opened(grants=_hold(self.grants, stack), tokens=_hold(self.tokens, stack), sharing=self.sharing())

    def barring(self) -> list[Path]:
        """Return the directories above tokens and demands through which the group cannot pass."""
        return [
            parent
            for parent in dict.fromkeys((*reversed(self.tokens.parents), *reversed(self.demands.parents)))
            if self.group is not None and not _lets_pass(parent, self.group)
        ]

    def listing(self) -> Listing:
        """Read ``grants/``; empty where it does not exist yet. Raises ``DirectoryError``."""
        from_names, unfinished = [], set()
        try:
            self._check_private(self.grants)
            entries = os.listdir(self.grants)  # noqa: PTH208  plain names
        except FileNotFoundError:
            return Listing((), frozenset())
        except OSError as error:
            raise DirectoryError(f"cannot read {self.grants}: {error.strerror}") from None
        for entry in entries:
            if entry.startswith("."):
                continue
            stem, _, suffix = entry.rpartition(".")
            if suffix == "json":
                from_names.append(stem)
            elif suffix in ("intent", "next"):
                unfinished.add(stem)
            elif suffix.isdecimal() and (match := _FRESH.fullmatch(entry)):
                unfinished.add(match["name"])
        return Listing(tuple(sorted(from_names)), frozenset(unfinished))

    def ensure(self) -> None:
        """Make what is missing, with the modes of DESIGN section 1 whatever the umask.

        Raises ``DirectoryError`` where a directory cannot be made, or where others could read ``grants/``.
        """
        if (trouble := self.prepare()) is not None:
            raise DirectoryError(trouble)

    def prepare(self) -> str | None:
        """Do as ``ensure`` does, but return what is wrong with ``demands/``: tokens rotate on schedule without it."""
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
                _check_directory(self.demands)
        except DirectoryError as error:
            return str(error)
        with self._explained():
            _check_demands(self.demands)
        return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            group = "" if self.group is None else f" (is this user in group {self.group}?)"
            raise DirectoryError(f"cannot make or share {error.filename}: {error.strerror}{group}") from None
        except OSError as error:
            raise DirectoryError(f"cannot make {error.filename or self.state}: {error.strerror}") from None

    def _check_private(self, directory: Path) -> None:
        status = directory.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise DirectoryError(f"{directory} is a symbolic link: let the state directory be one instead")
        if not stat.S_ISDIR(status.st_mode):
            raise DirectoryError(f"{directory} is not a directory")
        if status.st_uid != os.geteuid():
            raise DirectoryError(
                f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}: run it as its owner"
            )
        if status.st_mode & 0o077:
            raise DirectoryError(f"others can look into {directory}: chmod 700 it, refresh tokens are in there")


def _hold(directory: Path, stack: ExitStack) -> int | None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # whoever reads a file in it says what is wrong
    stack.callback(os.close, descriptor)
    return descriptor


def _check_directory(directory: Path) -> os.stat_result:
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryError(f"{directory} is not a directory")
    return status


def _check_tokens(directory: Path) -> None:
    status = _check_directory(directory)
    # A sticky bit would not help: a token file that is not there yet could be put there.
    if status.st_mode & stat.S_IWOTH:
        raise DirectoryError(f"anybody can write in {directory}, and so replace what agents trust: chmod o-w it")
    if status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(
            f"{directory} belongs to user {status.st_uid}, who could replace what agents trust: "
            f"chown it to user {os.geteuid()}"
        )


def _check_demands(directory: Path) -> None:
    mode = _check_directory(directory).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise DirectoryError(f"anybody can write in {directory}, and so take demands away: chmod o-w it")


def _lets_pass(directory: Path, group: int) -> bool:
    try:
        status = directory.stat()
    except OSError:
        return True  # made in a moment, with the right mode
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH))


def _make_parents(directory: Path, mode: int) -> None:
    """Make what leads to ``directory``; a group that shall reach it must be able to pass."""
    for parent in reversed(directory.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700, exist_ok=True)
            parent.chmod(mode)
            files.sync_directory(parent.parent)


def _make(directory: Path, mode: int, group: int | None, *, parents: int) -> None:
    if directory.exists():
        if group is not None:
            _share(directory, mode, group)
        elif mode == 0o711:
            # Agents of the group pass through the state directory to their tokens.
            directory.chmod(directory.stat().st_mode & 0o7777 | 0o111)
        return
    _make_parents(directory, parents)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return  # made by another process this instant
    files.sync_directory(directory.parent)
    if group is None:
        directory.chmod(mode)
    else:
        _share(directory, mode, group)


def _share(directory: Path, mode: int, group: int) -> None:
    """Give a directory to the group, where that is still to be done."""
    descriptor = _open_to_share(directory)
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


def _open_to_share(directory: Path) -> int:
    """Open a directory that is to be shared; through no stranger's link, which may lead to grants."""
    status = directory.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link and status.st_uid not in (0, os.geteuid()):
        raise DirectoryError(
            f"{directory} is a link of user {status.st_uid}, and might lead to what nobody may share: remove it"
        )
    try:
        # What is no link stays none, whoever puts one in its place meanwhile.
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if is_link else os.O_NOFOLLOW))
    except NotADirectoryError:
        raise DirectoryError(f"{directory} is not a directory") from None
