"""One token source for each name in a program with many clients."""

import os

from shim._source import FileTokenSource

__all__ = ["TokenSources"]


class TokenSources:
    """The token sources of one process; clients of the same name share one source.

    ``tokens_dir`` and ``demands_dir`` are those of ``FileTokenSource``. Raises ``ValueError`` for an invalid name.
    """

    def __init__(
        self,
        *,
        tokens_dir: "str | os.PathLike[str] | None" = None,
        demands_dir: "str | os.PathLike[str] | None" = None,
    ) -> None:
        self._tokens_dir = tokens_dir
        self._demands_dir = demands_dir
        self._sources: dict[str, FileTokenSource] = {}

    def __getitem__(self, name: str) -> FileTokenSource:
        """Return the source of ``name``."""
        if name not in self._sources:
            made = FileTokenSource(name, tokens_dir=self._tokens_dir, demands_dir=self._demands_dir)
            return self._sources.setdefault(name, made)
        return self._sources[name]

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` has a source."""
        return name in self._sources

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self._sources)

    def drop(self, name: str) -> None:
        """Forget the source of a name that is not used any more; clients that have it keep it."""
        self._sources.pop(name, None)
