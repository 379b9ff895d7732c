"""Demands: entries ``NAME.GENERATION`` by which agents ask for a rotation; listed and removed, never opened.

Agents make empty files. But whatever stands under such a name keeps them from making theirs, so whatever stands there
is the demand: a directory of one agent must not silence the others.
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

_STUCK: Final[set[str]] = set()
_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,17}")


class Demands(msgspec.Struct, frozen=True):
    """The generations that are demanded, by name."""

    by_name: dict[str, frozenset[int]]

    def concern(self, name: str) -> bool:
        """Whether there is any for ``name``."""
        return name in self.by_name

    def ask_beyond(self, name: str, current: range) -> bool:
        """Whether an agent had a token refused whose generation is ``current``."""
        return any(demanded in current for demanded in self.by_name.get(name, ()))

    def are_others(self, name: str, current: range) -> bool:
        """Whether an agent has not seen what is ``current``; nor has one that names what there never was."""
        return any(demanded not in current for demanded in self.by_name.get(name, ()))

    def settle(self, directories: Directories, name: str, keep: range) -> None:
        """Remove the demands of ``name`` that are decided; ``keep``: those for these generations are still to be."""
        for generation in self.by_name.get(name, ()):
            if generation not in keep:
                try:
                    _remove(directories.demands / f"{name}.{generation}")
                except OSError as error:
                    # Once for each: it is tried again with every look.
                    level = logging.DEBUG if name in _STUCK else logging.WARNING
                    log.log(level, "%s: cannot remove a demand in %s: %s", name, directories.demands, error.strerror)
                    _STUCK.add(name)


def pending(directories: Directories) -> Demands:
    """List the demands; none where the directory is missing or unreadable: tokens rotate on schedule all the same."""
    found: dict[str, set[int]] = {}
    try:
        with os.scandir(directories.demands) as entries:
            for entry in entries:
                name, _, generation = entry.name.rpartition(".")
                if is_name(name) and _GENERATION.fullmatch(generation):
                    found.setdefault(name, set()).add(int(generation))
    except OSError:
        pass
    return Demands({name: frozenset(generations) for name, generations in found.items()})


def _remove(path: Path) -> None:
    """Remove what is at ``path``, whatever it is. Raises ``OSError``: of a directory that holds something, for one."""
    with suppress(FileNotFoundError):
        try:
            path.unlink()
        except (IsADirectoryError, PermissionError) as error:  # Linux and POSIX say different things of a directory
            try:
                path.rmdir()
            except NotADirectoryError:
                raise error from None
