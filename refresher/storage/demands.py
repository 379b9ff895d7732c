"""Demands: files ``NAME.GENERATION`` with which agents demand a rotation; listed and removed.

Agents create files that are empty, or that hold the origin that refused the token, or the word ``expiring``. Any entry
with such a name counts as the demand, because agents cannot create theirs beside it: a directory that one agent creates
must not block the others.

Agents can create any number of entries. So a listing ends after a number of entries that depends on the number of
grants only. Beyond that, the demands that matter are looked up by their names.
"""

import logging
import math
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.errors import DirectoryError
from refresher.grants.record import Grant
from refresher.storage import files
from refresher.storage.directories import Directories
from shim._source import EXPIRING
from shim._token import TokenFile, is_name

__all__ = ["Demands", "bar", "barred_until", "of_name", "pending", "reason", "remove"]

log = logging.getLogger(__name__)

_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_LISTED: Final = 65_536
_KEPT: Final = 16_384
_FOR_EACH: Final = 16
_LARGEST_BAR: Final = 32
_LARGEST_DEMAND: Final = 1024


class Demands(msgspec.Struct, frozen=True, kw_only=True):
    """What a listing of ``directory`` found."""

    directory: Path
    by_name: dict[str, frozenset[int]] = {}
    complete: bool = True
    """Whether the listing saw every entry."""

    def of(self, name: str, current: range) -> frozenset[int]:
        """Return the demanded generations of ``name``.

        Beyond the listing, these are the generations in ``current`` and the one before.
        """
        listed = self.by_name.get(name, frozenset())
        if self.complete:
            return listed
        return listed.union(each for each in _likely(current) if os.path.lexists(f"{self.directory}/{name}.{each}"))

    def warn(self, warned: set[str], level: int = logging.WARNING) -> None:
        """Log once if there are more entries than a listing takes. ``warned``: the warnings already logged."""
        warning = "too many demands"
        if not self.complete and warning not in warned:
            warned.add(warning)
            log.log(
                level,
                "too many entries in %s: refresher reads the first ones only, and looks up the demands for current "
                "tokens by name; delete what no agent needs",
                self.directory,
            )


def pending(directories: Directories, names: Collection[str] | Mapping[str, object]) -> Demands:
    """List the demands for ``names``; there are none if the directory cannot be read: tokens rotate on schedule only.

    The number of names bounds the entries that this reads, and those that it returns.
    """
    if not isinstance(names, Mapping):
        names = frozenset(names)
    found: dict[str, set[int]] = {}
    room, complete = _KEPT + _FOR_EACH * len(names), True
    with suppress(OSError, DirectoryError), directories.opened_demands() as place, os.scandir(place) as entries:
        for count, entry in enumerate(entries):
            if room == 0 or count == _LISTED + _FOR_EACH * len(names):
                complete = False
                break
            name, _, generation = entry.name.rpartition(".")
            if name in names and _GENERATION.fullmatch(generation) and is_name(name):
                found.setdefault(name, set()).add(int(generation))
                room -= 1
    by_name = {name: frozenset(generations) for name, generations in found.items()}
    return Demands(directory=directories.demands, by_name=by_name, complete=complete)


def of_name(directories: Directories, name: str, current: range, listed: Collection[int]) -> frozenset[int]:
    """Return the demanded generations of ``name``, without a listing: of ``current``, the one before, and ``listed``.

    ``listed``: those that an earlier listing found.
    """
    with suppress(OSError, DirectoryError), directories.opened_demands() as place:
        return frozenset(each for each in {*_likely(current), *listed} if _is_there(place, f"{name}.{each}"))
    return frozenset()


def reason(directories: Directories, grant: Grant | TokenFile, demanded: frozenset[int], current: range) -> str | None:
    """Return what a demand for a generation in ``current`` holds: ``EXPIRING``, or the origin that refused the token.

    Of origins, only those of ``grant`` count. It is for messages only. An agent can write anything, so nothing else is
    used, and nothing is followed or awaited.
    """
    with suppress(OSError, DirectoryError), directories.opened_demands() as place:
        for generation in sorted(demanded.intersection(current), reverse=True):
            with suppress(OSError, ValueError):
                found = files.read(f"{grant.name}.{generation}", _LARGEST_DEMAND, directory=place)
                if found is not None and (text := found.data.decode("ascii").strip()) in (*grant.origins, EXPIRING):
                    return text
    return None


def remove(directories: Directories, name: str, demanded: frozenset[int], *, keep: range, warned: set[str]) -> None:
    """Remove the demands for the generations ``demanded`` of ``name``, except for those in ``keep``.

    ``warned``: the warnings that this process has logged; a demand that cannot be removed is retried at each scan.
    """
    if not (stale := [generation for generation in demanded if generation not in keep]):
        return
    with suppress(OSError, DirectoryError), directories.opened_demands() as place:
        for generation in stale:
            entry = f"{name}.{generation}"
            try:
                _remove(place, entry)
            except OSError as error:
                warning = f"demands of {name}"
                level = logging.DEBUG if warning in warned else logging.WARNING
                path = directories.demands / entry
                log.log(level, "%s: cannot remove the demand %s: %s; delete it", name, path, error.strerror)
                warned.add(warning)


def bar(directories: Directories, name: str, generation: int) -> str | None:
    """Before ``generation`` is first published: make sure that no demand for it exists, or that it never counts (I1).

    An agent that plants such a demand has not been refused that token. Return why the demand is still there, or
    ``None``. The effect is durable on return. Raises ``OSError`` if it cannot be; then do not publish.
    """
    entry, problem = f"{name}.{generation}", None
    try:
        with directories.opened_demands() as place:
            try:
                if not _is_there(place, entry):
                    # An earlier attempt may have removed it, and not synced. If the disk accepts nothing any more, a
                    # token that was spilled is published all the same.
                    with suppress(OSError):
                        os.fsync(place)
                    return None
                _remove(place, entry)
                os.fsync(place)
            except OSError as error:
                path = directories.demands / entry
                problem = f"cannot remove the demand {path}, which is older than its token: {error.strerror}"
            else:
                return None
    except FileNotFoundError:
        return None  # there is no directory yet
    except (OSError, DirectoryError):
        pass  # nobody can tell what is in it; the daemon reports it
    grants = os.open(directories.grants, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.replace(grants, directories.barred(name).name, b"%d" % generation, mode=0o600, group=None)
        os.fsync(grants)
    finally:
        os.close(grants)
    return problem


def barred_until(directories: Directories, name: str) -> float:
    """Return the last generation for which demands never count, because a planted one could not be removed.

    -1 if there is none; infinity if nobody can tell.
    """
    try:
        found = files.read(directories.barred(name), _LARGEST_BAR)
        return -1 if found is None else int(found.data)
    except (OSError, ValueError):
        return math.inf


def _likely(current: range) -> range:
    """Return the generations that agents are most likely to hold."""
    return range(max(current.start - 1, 0), current.stop)


def _is_there(place: int, entry: str) -> bool:
    try:
        os.stat(entry, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(place: int, entry: str) -> None:
    """Remove an entry of any kind from an open directory, or rename it to what is no demand. Raises ``OSError``."""
    with suppress(FileNotFoundError):
        try:
            os.unlink(entry, dir_fd=place)
        except (IsADirectoryError, PermissionError) as error:  # for a directory, Linux raises one and POSIX the other
            try:
                os.rmdir(entry, dir_fd=place)
            except NotADirectoryError:
                raise error from None
            except OSError:
                # There is something in it. Nobody can guess the new name, and so nobody can block it.
                os.rename(entry, f"ignored-{os.urandom(16).hex()}", src_dir_fd=place, dst_dir_fd=place)
