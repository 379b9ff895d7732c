"""Where the files are, and who may read them."""

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.errors import DirectoryError
from refresher.storage import files, single_directory, write_access
from refresher.storage.keys import KeyRing
from refresher.storage.write_access import Found
from shim._token import is_name

__all__ = ["Directories", "Listing", "Sharing", "left_by_attempt"]

_SHARED_TOKENS: Final = 0o750

_NEXT: Final = re.compile(r"(?P<name>.+)\.next(\.\d+)?")


Sharing = tuple[int, int | None]
"""The permissions and the group of token files; ``None`` leaves the group as it is."""


class Listing(msgspec.Struct, frozen=True):
    """The valid names in ``grants/`` that have a record, and those for which an attempt left files."""

    names: tuple[str, ...] = ()
    unfinished: dict[str, set[str]] = {}
    """For each of these, the files that an attempt left."""
    sharing: Sharing | None = None
    """What ``sharing`` returned at the time of the listing; ``None``: not read."""
    demands_problem: str | None = None
    """Why demands do not count: ``demands/`` cannot be used. ``None`` if it can, or if it does not exist yet."""

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
    keys: KeyRing = KeyRing()
    """The keys of sealed grants; without one, records are plain."""

    @property
    def grants(self) -> Path:
        """The directory of the private records."""
        return self.state / "grants"

    @property
    def import_lock(self) -> Path:
        """The lock that every import and login holds, so that two cannot store one refresh token under two names."""
        return self.grants / ".import.lock"

    @property
    def publish_lock(self) -> Path:
        """The lock of each process that publishes what a database holds: one host can run several."""
        return self.grants / ".publish.lock"

    @property
    def health_socket(self) -> Path:
        """The socket at which the daemon answers ``refresher health``: only its own user can enter ``grants/``."""
        return self.grants / ".health.sock"

    @property
    def last_run(self) -> Path:
        """The file that says when refresher last looked at the grants."""
        return self.state / "last-run"

    @property
    def history(self) -> Path:
        """The database of events."""
        return self.state / "events.sqlite3"

    @property
    def rest_index(self) -> Path:
        """The file that says which grants ``run-once`` need not read."""
        return self.state / "rest-index"

    @property
    def metrics_lock(self) -> Path:
        """The lock of each process that replaces the metrics file."""
        return self.state / "metrics.lock"

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

    def attempt_files(self, name: str) -> set[str]:
        """Return the first files that an attempt at ``name`` left, without a listing. Raises ``OSError``."""
        entries = (f"{name}.{suffix}" for suffix in ("intent", "next", "next.1"))
        return {entry for entry in entries if _is_there(f"{self.state}/grants/{entry}")}

    def candidates(self, name: str) -> list[Path]:
        """List the files in ``grants/`` that may hold the next record of ``name``. Raises ``OSError``.

        They are removed in the reverse order, so that what is left is found by name (``attempt_files``).
        """
        entries = sorted(os.listdir(self.grants))  # noqa: PTH208  plain names
        return [self.grants / entry for entry in entries if (match := _NEXT.fullmatch(entry)) and match["name"] == name]

    def token(self, name: str) -> Path:
        """Return the path of the published token file."""
        return self.tokens / f"{name}.json"

    def sharing(self, status: os.stat_result | None = None) -> Sharing:
        """Return the permissions and the group of token files; ``status``: that of ``tokens/``, if the caller has it.

        Without a group, a shared tokens directory stays shared: a run by hand without the option must not lock the
        agents out.
        """
        if self.group is not None:
            return 0o640, self.group
        try:
            status = status or self.tokens.stat()
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

    def listing(self, names: Collection[str] = ()) -> Listing:
        """List ``grants/``, or look up ``names`` there; nothing if it does not exist yet. Raises ``DirectoryError``."""
        from_names: list[str] = []
        unfinished: dict[str, set[str]] = {}
        if not os.path.lexists(self.state):
            return Listing()
        try:
            trouble = self._check()
        except NotADirectoryError:
            raise DirectoryError(f"{self.state} is not a directory; check --state-dir") from None
        except OSError as error:
            raise DirectoryError(f"cannot read {error.filename or self.state}: {error.strerror}") from None
        try:
            single_directory.check_private(self.grants)
            if names:
                valid = sorted(filter(is_name, names))
                found = tuple(name for name in valid if _is_there(self.record(name)))
                unfinished = {name: left for name in valid if (left := self.attempt_files(name))}
                return Listing(found, unfinished, self.sharing(), trouble)
            entries = os.listdir(self.grants)  # noqa: PTH208  plain names
        except FileNotFoundError:
            return Listing(demands_problem=trouble)
        except OSError as error:
            raise DirectoryError(f"cannot read {self.grants}: {error.strerror}") from None
        for entry in entries:
            stem, _, suffix = entry.rpartition(".")
            if suffix == "json":
                from_names.append(stem)
            elif suffix != "lock" and (name := left_by_attempt(entry)) is not None:
                unfinished.setdefault(name, set()).add(entry)
        return Listing(tuple(sorted(filter(is_name, from_names))), unfinished, self.sharing(), trouble)

    def prepare(self) -> str | None:
        """Create the directories that are missing, with the modes of the README, independent of the umask.

        Return what is wrong with ``demands/``, because the schedule does not need it. Raises ``DirectoryError`` if
        another directory cannot be created, or if other users could read ``grants/``.
        """
        shared = self.group is not None
        passed = 0o711 if shared else 0o700
        with self._explained():
            trouble = self._check()
            made = [
                single_directory.make(self.state, passed, parents=passed),
                single_directory.make(self.grants, 0o700, parents=passed),
                single_directory.make(self.tokens, 0o700, parents=passed),
            ]
            if any(made):
                trouble = self._check()  # names that differ may lead to one directory, in a file system without case
            single_directory.check_private(self.grants)
            if shared and (mode := stat.S_IMODE(self.state.stat().st_mode)) & passed != passed:
                # Agents of the group traverse the state directory on the way to their tokens.
                self.state.chmod(mode | passed)
            with self.opened_tokens() as descriptor:
                if self.group is not None:
                    single_directory.share(descriptor, self.tokens, _SHARED_TOKENS, self.group)
        if trouble is not None:
            return trouble
        try:
            with self._explained():
                if single_directory.make(self.demands, 0o700, parents=passed):
                    self._check()
                with self.opened_demands() as descriptor:
                    if self.group is not None:
                        single_directory.share(descriptor, self.demands, 0o3770, self.group)
                    status = os.fstat(descriptor)
        except DirectoryError as error:
            return str(error)
        single_directory.check_sticky(self.demands, status)
        return None

    @contextmanager
    def opened_tokens(self) -> Iterator[int]:
        """Open ``tokens/`` for publishing, and check on the descriptor that it is no directory of grants.

        Raises ``DirectoryError`` and ``OSError``.
        """
        with self._opened(self.tokens, "tokens directory", single_directory.check_tokens) as descriptor:
            with suppress(FileNotFoundError):
                # Every import leaves this file beside the grants that it stores.
                os.stat(self.import_lock.name, dir_fd=descriptor, follow_symlinks=False)
                raise DirectoryError(
                    f"{self.tokens} holds grants, which tokens would replace: give another --tokens-dir"
                )
            yield descriptor

    @contextmanager
    def opened_demands(self) -> Iterator[int]:
        """Open ``demands/``, and check on the descriptor whose it is, and that it is no directory of grants.

        Raises ``DirectoryError`` and ``OSError``.
        """
        with self._opened(self.demands, "demands directory", single_directory.check_demands) as descriptor:
            yield descriptor

    @contextmanager
    def _opened(self, directory: Path, role: str, check: Callable[[Path, os.stat_result], None]) -> Iterator[int]:
        with single_directory.opened(directory) as descriptor:
            check(directory, status := os.fstat(descriptor))
            with suppress(FileNotFoundError):
                if os.path.samestat(status, self.grants.lstat()):
                    raise DirectoryError(_one_directory(role, "grants directory", directory))
            yield descriptor

    def risks_above(self) -> list[str]:
        """Return who can replace the state directory or ``tokens/`` in a directory above it, one line for each."""
        found: list[Found] = []
        for directory in (self.state, self.tokens):
            with suppress(OSError):
                found.append(write_access.find(directory))
        return list(dict.fromkeys(risk for each in found for risk, _ in self._risks_above(each)))

    def _risks_above(self, found: Found) -> Iterator[tuple[str, bool]]:
        """Return each risk, and whether agents of the group can use it."""
        mode, agents = self.sharing()
        for parent, status, entry in found.above():
            who = write_access.writers(status)
            if status.st_mode & stat.S_IWGRP and status.st_gid == self.group:
                who = who or f"group {self.group}"  # this user's private one, which is given to agents
            if who is None or status.st_mode & stat.S_ISVTX:
                continue
            change = "o-w" if who == "anybody" else "g-w"
            refused = mode == 0o640 and (who == "anybody" or status.st_gid == agents)
            # Agents may have another view of a mount, or none.
            if refused and any(map(write_access.is_mount_point, (parent, entry))):
                refused = False
            yield f"{who} can write in {parent} and replace {entry}: run 'chmod {change} {parent}'", refused

    def _check(self) -> str | None:
        """Check what exists, before anything is made, shared or written; return what is wrong with ``demands/``.

        Raises ``DirectoryError`` and ``OSError``.
        """
        found = {"state directory": write_access.find(self.state), "grants directory": write_access.find(self.grants)}
        found["tokens directory"] = write_access.find(self.tokens)
        for place in found.values():
            single_directory.refuse_link_of_another(place)
        trouble = None
        try:
            single_directory.refuse_link_of_another(place := write_access.find(self.demands))
            found["demands directory"] = place
            if not place.missing:
                single_directory.check_demands(self.demands, place.directory[1])
        except DirectoryError as error:
            trouble = str(error)
        except OSError as error:
            trouble = f"cannot read {self.demands}: {error.strerror}"
        with suppress(OSError):
            # No token is ever stored through the link of another user, so it must not stop everything either.
            if (place := write_access.find(self.spill)).link_of_another is None:
                found["spill directory"] = place
        grants = found["grants directory"].place
        known: dict[tuple[int, int, tuple[str, ...]], str] = {}
        for role, place in found.items():
            if (other := known.setdefault(place.identity, role)) != role:
                raise DirectoryError(_one_directory(other, role, place.place))
            if role in ("tokens directory", "demands directory") and grants in place.place.parents:
                raise DirectoryError(
                    f"the {role} {place.place} is inside the grants directory, which agents cannot enter: give another "
                    f"--{role.split()[0]}-dir"
                )
        if not found["grants directory"].missing:
            single_directory.check_private(self.grants)
        self._check_state(found["state directory"])
        if not (tokens := found["tokens directory"]).missing:
            single_directory.check_tokens(self.tokens, tokens.directory[1])
        for place in (found["state directory"], tokens):
            for risk, refused in self._risks_above(place):
                if refused:
                    raise DirectoryError(risk)
        return trouble

    def _check_state(self, found: Found) -> None:
        path, status = found.directory
        if found.missing:
            # What root makes in the directory of a user, that user cannot use.
            if os.geteuid() == 0 != status.st_uid:
                raise DirectoryError(
                    f"{self.state} does not exist, and {path} belongs to user {status.st_uid}, this is root: run it as "
                    "that user, or create the directory"
                )
            return
        if not stat.S_ISDIR(status.st_mode):
            raise DirectoryError(f"{self.state} is not a directory")
        if status.st_uid not in (0, os.geteuid()):
            raise DirectoryError(
                f"{self.state} belongs to user {status.st_uid}, this is user {os.geteuid()}: run it as its "
                "owner if you trust that user, or choose another --state-dir"
            )
        if (who := write_access.writers(status)) is not None:
            change = "o-w" if who == "anybody" else "g-w"
            raise DirectoryError(f"{who} can write to {self.state} and replace grants: run 'chmod {change}' on it")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            group = "" if self.group is None else f" (is this user in group {self.group}?)"
            raise DirectoryError(f"cannot create or share {error.filename}: {error.strerror}{group}") from None
        except OSError as error:
            raise DirectoryError(f"cannot create {error.filename or self.state}: {error.strerror}") from None


def _is_there(path: Path | str) -> bool:
    """Whether there is an entry at ``path``. Raises ``OSError`` if the file system does not say."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def left_by_attempt(entry: str) -> str | None:
    """Return the name whose attempt leaves a file with the name ``entry`` in ``grants/``; ``None`` if none does."""
    name, _, suffix = entry.rpartition(".")
    if suffix != "intent":
        name = match["name"] if (match := _NEXT.fullmatch(entry)) else ""
    return name if is_name(name) else None


def _lets_pass(directory: Path, group: int) -> bool:
    try:
        status = directory.stat()
    except OSError:
        return True  # it does not exist yet, and is created with the right mode
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH))


def _one_directory(first: str, second: str, path: Path) -> str:
    return f"the {first} and the {second} are one directory, {path}: give them different directories"
