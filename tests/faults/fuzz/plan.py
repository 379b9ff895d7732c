"""The plan of a fuzz: which demands the agents may make, in memory that the fuzz and its agents share.

Before a grant in doubt gets a new token, the agents make no more demands for it. So every demand for this token is
older than the token.
"""

import mmap
import struct
from pathlib import Path
from typing import Final, Self

__all__ = ["Plan"]

_EACH: Final = struct.Struct("=Q")
_FLOORS: Final = 1
_SEEN: Final = 32
_SIZE: Final = 4096


class Plan:
    """The lowest generation that each of the strict grants may be demanded of, and how much of it each agent has seen."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @classmethod
    def made(cls, path: Path) -> Self:
        """Make the file of a new plan: all floors are 0."""
        path.write_bytes(bytes(_SIZE))
        return cls(path)

    def floor(self, grant: int) -> int:
        """Return the lowest generation that agents demand of strict grant number ``grant``."""
        return self._get(_FLOORS + grant)

    def raise_floor(self, grant: int, generation: int) -> int:
        """Change it, and return the number of this change."""
        self._set(_FLOORS + grant, generation)
        self._set(0, self._get(0) + 1)
        return self._get(0)

    def see(self, agent: int) -> None:
        """Say that what ``agent`` does from now on follows the plan as it is now."""
        self._set(_SEEN + agent, self._get(0))

    def seen(self, agent: int) -> int:
        """Return the last change that ``agent`` follows."""
        return self._get(_SEEN + agent)

    def _get(self, place: int) -> int:
        (value,) = _EACH.unpack_from(self._memory, place * _EACH.size)
        return int(value)

    def _set(self, place: int, value: int) -> None:
        _EACH.pack_into(self._memory, place * _EACH.size, value)
