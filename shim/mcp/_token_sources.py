"""One process, many servers: one source for each name."""

import os

from shim._source import FileTokenSource

__all__ = ["TokenSources"]


class TokenSources:
    """The sources of one process, shared by all clients of a name and by their reconnects.

    ``tokens_dir`` and ``demands_dir`` as in ``FileTokenSource``. Raises ``ValueError`` where a name is none.
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
        """Return the one source of ``name``."""
        if name not in self._sources:
            made = FileTokenSource(name, tokens_dir=self._tokens_dir, demands_dir=self._demands_dir)
            return self._sources.setdefault(name, made)
        return self._sources[name]

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` has a source."""
        return name in self._sources

    def __len__(self) -> int:
        """Count the sources."""
        return len(self._sources)

    def drop(self, name: str) -> None:
        """Forget the source of a name that is no longer used; clients that hold it keep it."""
        self._sources.pop(name, None)
