"""Demands: files ``NAME.GENERATION`` with which agents demand a rotation; listed and removed, never opened.

Agents create empty files. Any entry with such a name counts as the demand, because agents cannot create theirs beside
it: a directory that one agent creates must not block the others.
"""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from refresher.storage.directories import Directories
from shim._token import is_name

__all__ = ["Demands", "pending"]

log = logging.getLogger(__name__)

_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,17}")


class Demands(msgspec.Struct, frozen=True):
    """The demanded generations, by the name of the grant."""

    by_name: dict[str, frozenset[int]]

    def has_current(self, name: str, current: range) -> bool:
        """Whether a server refused an agent the token of a generation in ``current``."""
        return any(demanded in current for demanded in self.by_name.get(name, ()))

    def has_other(self, name: str, current: range) -> bool:
        """Whether a demand names another generation: its agent has not read the current token."""
        return any(demanded not in current for demanded in self.by_name.get(name, ()))

    def remove(self, directories: Directories, name: str, *, keep: range, warned: set[str]) -> None:
        """Remove the demands for ``name``, except those for the generations in ``keep``.

        ``warned``: the warnings that this process has logged; a demand that cannot be removed is retried at each scan.
        """
        for generation in self.by_name.get(name, ()):
            if generation in keep:
                continue
            path = directories.demands / f"{name}.{generation}"
            try:
                _remove(path)
            except OSError as error:
                warning = f"demands of {name}"
                level = logging.DEBUG if warning in warned else logging.WARNING
                log.log(level, "%s: cannot remove the demand %s: %s; delete it", name, path, error.strerror)
                warned.add(warning)


def pending(directories: Directories) -> Demands:
    """List the demands; there are none if the directory cannot be read; then tokens rotate on schedule only."""
    found: dict[str, set[int]] = {}
    with suppress(OSError), os.scandir(directories.demands) as entries:
        for entry in entries:
            name, _, generation = entry.name.rpartition(".")
            if is_name(name) and _GENERATION.fullmatch(generation):
                found.setdefault(name, set()).add(int(generation))
    return Demands({name: frozenset(generations) for name, generations in found.items()})


def _remove(path: Path) -> None:
    """Remove a file or an empty directory. Raises ``OSError``."""
    with suppress(FileNotFoundError):
        try:
            path.unlink()
        except (IsADirectoryError, PermissionError) as error:  # for a directory, Linux raises one and POSIX the other
            try:
                path.rmdir()
            except NotADirectoryError:
                raise error from None
