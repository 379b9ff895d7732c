"""Both kinds of store, for the tests that each must pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.postgres import migrations
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.store import Store
from tests.support.fake_state import directories
from tests.support.postgres import Cluster

__all__ = ["KINDS", "Place", "open_place"]

KINDS = ("files", "postgresql")


class Place:
    """Where grants are, and how any number of processes opens it: the same files, or one database from many hosts."""

    def __init__(self, kind: str, root: Path, url: str | None) -> None:
        self.kind = kind
        self.url = url
        self._root = root
        self._opened: list[PostgresStore] = []

    def hosts(self, name: str = "host") -> Directories:
        """Return the directories of a host."""
        return directories(self._root / (name if self.url else "host"))

    def open(self, host: str = "host") -> Store:
        """Open the store, as a process on ``host`` does; files are on one host."""
        if self.url is None:
            return FileStore(self.hosts())
        store = PostgresStore(self.url, self.hosts(host))
        self._opened.append(store)
        return store

    def close(self) -> None:
        for store in self._opened:
            store.close()


@contextmanager
def open_place(kind: str, root: Path, cluster: Callable[[], Cluster]) -> Iterator[Place]:
    """Make an empty place for grants."""
    with ExitStack() as stack:
        url = None
        if kind == "postgresql":
            url = stack.enter_context(cluster().database())
            with_schema = PostgresStore(url, directories(root / "schema"))
            migrations.migrate(with_schema.database)
            with_schema.close()
        place = Place(kind, root, url)
        stack.callback(place.close)
        yield place
