"""Demands: empty files ``NAME.GENERATION`` by which agents ask for a rotation; listed, never opened."""

import os
import re
from contextlib import suppress
from typing import Final

import msgspec

from refresher.directories import Directories
from shim._token import is_name

__all__ = ["Demands", "pending"]

_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,17}")


class Demands(msgspec.Struct, frozen=True):
    """The generations that are demanded, by name."""

    by_name: dict[str, frozenset[int]]

    def of(self, name: str) -> frozenset[int]:
        """Return the demanded generations of ``name``."""
        return self.by_name.get(name, frozenset())

    def settle(self, directories: Directories, name: str, keep: int | None) -> None:
        """Remove the demands of ``name`` that are decided; ``keep`` is a generation still to be rotated."""
        for generation in self.of(name):
            if generation != keep:
                path = directories.demands / f"{name}.{generation}"
                with suppress(OSError):
                    path.unlink()


def pending(directories: Directories) -> Demands:
    """List the demands; none where the directory is missing or unreadable: tokens rotate on schedule all the same."""
    found: dict[str, set[int]] = {}
    try:
        with os.scandir(directories.demands) as entries:
            for entry in entries:
                name, _, generation = entry.name.rpartition(".")
                if is_name(name) and _GENERATION.fullmatch(generation) and entry.is_file(follow_symlinks=False):
                    found.setdefault(name, set()).add(int(generation))
    except OSError:
        pass
    return Demands({name: frozenset(generations) for name, generations in found.items()})
