"""Hosts with one database of grants, each as a process there opens it, and rotations of the grant ``linear``."""

import json
import re
import threading
import uuid
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from refresher.common import clocks
from refresher.common.secret import Secret
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.directories import Directories
from refresher.storage.postgres import spills
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.postgres.settling import Sent
from tests.support.fake_state import directories
from tests.support.token_server import TokenServer

__all__ = ["Fleet", "Rotation", "import_grant", "record_of", "rotate_linear", "spill"]


class Fleet:
    """Hosts with one database."""

    def __init__(self, root: Path, url: str) -> None:
        self._root = root
        self.url = url
        self._stores: list[PostgresStore] = []

    def host(self, name: str, port: int | None = None) -> PostgresStore:
        """Return a store as a process on the host ``name`` opens it, by way of a proxy at ``port``."""
        url = self.url if port is None else re.sub(r":\d+/", f":{port}/", self.url)
        store = PostgresStore(url, directories(self._root / name))
        self._stores.append(store)
        return store

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def end_lease(self) -> None:
        """Let the lease of each holder end, as after half a minute; their sessions end too."""
        self.execute(
            "UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s', next_at = clock_timestamp(), "
            "armed_at = armed_at - interval '10 min', holder_pid = NULL WHERE attempt IS NOT NULL"
        )

    def close(self) -> None:
        for store in self._stores:
            store.close()


def import_grant(store: PostgresStore, server: TokenServer, name: str = "linear", **more: Any) -> Grant:
    parsed = import_request.parse(name, json.dumps(server.grant(name, **more)).encode(), clocks.now())
    return store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False).grant


def rotate_linear(store: PostgresStore, *, force: bool = True, seen: int = 10**6) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
    result = rotate(store, Order(name="linear", seen=seen, force=force), terms)
    assert result is not None
    return result


def spill(host: Directories, grant: Grant, token: str = "a-new-token", **changes: Any) -> Path:
    """Save the next generation of ``grant`` on ``host``, as if the database did not take it."""
    newer = msgspec.structs.replace(grant, generation=grant.generation + 1, refresh_token=Secret(token))
    sent = Sent(uuid.uuid4(), grant.name, grant.grant_id, grant.generation, grant.fingerprint())
    return spills.save(host, sent, msgspec.structs.replace(newer, **changes))


class Rotation:
    """A rotation in a thread."""

    def __init__(self, store: PostgresStore) -> None:
        self._results: list[Result] = []
        self._thread = threading.Thread(target=lambda: self._results.append(rotate_linear(store)))
        self._thread.start()

    def result(self) -> Result:
        self._thread.join(90)
        assert self._results
        return self._results[0]


def record_of(store: PostgresStore) -> Grant:
    record = store.load("linear").record
    assert isinstance(record, Grant)
    return record
