"""One database, and the real command on any number of hosts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from refresher.grants.record import Grant
from refresher.storage.postgres import migrations
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.command import Command
from tests.support.fake_state import directories
from tests.support.postgres import Cluster
from tests.support.vault import Vault

__all__ = ["Site", "opened"]


@contextmanager
def opened(root: Path, cluster: Cluster, vault: Vault) -> Iterator["Site"]:
    """A database of its own on a server, and the command on any number of hosts."""
    with cluster.database() as url:
        made = Site(root, url, vault)
        yield made
        made.store.close()


class Site:
    """A database, and the command on any number of hosts."""

    def __init__(self, root: Path, url: str, vault: Vault) -> None:
        self._root, self._vault = root, vault
        self.url = url
        self.store = PostgresStore(url, directories(root / "look"))
        migrations.migrate(self.store.database)

    def host(self, name: str, port: int | None = None) -> Command:
        """Return the command on a host, which reaches the database by way of a proxy at ``port``."""
        home = self._root / name
        home.mkdir(mode=0o700)
        made = Command(home, self._vault)
        made.environment["REFRESHER_STORE"] = self.url if port is None else re.sub(r":\d+/", f":{port}/", self.url)
        return made

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def generation(self, name: str) -> int:
        record = self.store.load(name).record
        return -1 if record is None else record.generation

    def grant(self, name: str) -> Grant:
        record = self.store.load(name).record
        assert isinstance(record, Grant)
        return record

    def orphans(self) -> list[tuple[Any, ...]]:
        return self.execute("SELECT name, why FROM refresher.orphan")

    def end_leases(self) -> None:
        """Let the lease of each holder end, as after half a minute, with its session."""
        self.execute(
            "UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s', next_at = clock_timestamp(), "
            "armed_at = armed_at - interval '10 min', holder_pid = NULL WHERE attempt IS NOT NULL"
        )
