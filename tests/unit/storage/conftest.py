"""Hosts with one database, and a server that ends a login at the first reuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.storage.keys import Source
from refresher.storage.postgres import migrations
from tests.support.fleet import Fleet
from tests.support.postgres import Cluster
from tests.support.token_server import Gate, TokenServer


@pytest.fixture
def fleet(tmp_path: Path, postgres: Cluster) -> Iterator[Fleet]:
    with postgres.database() as url:
        made = Fleet(tmp_path, url)
        migrations.migrate(made.host("schema").database)
        yield made
        made.close()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[TokenServer]:
    """A server that ends the login at the first reuse, and answers when ``gate`` is opened."""
    with TokenServer(lambda _: 3600.0, gate, grace=0) as made:
        yield made
        gate.opened.set()


@pytest.fixture
def nowhere(tmp_path: Path) -> Source:
    """A source that gives no key."""
    return Source("file", str(tmp_path / "nowhere"))
