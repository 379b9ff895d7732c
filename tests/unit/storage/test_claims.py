"""Claims of what is due in a database: their cost, and demands that come meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from refresher.grants.record import Grant
from refresher.storage.postgres import changes, due
from tests.support.postgres import Cluster
from tests.support.site import Site
from tests.support.token_server import TokenServer
from tests.support.vault import Vault


@pytest.fixture
def site(tmp_path: Path, postgres: Cluster, vault: Vault) -> Iterator[Site]:
    with postgres.database() as url:
        made = Site(tmp_path, url, vault)
        made.store.prepare()
        yield made
        made.store.close()


def test_a_claim_reads_only_grants_that_are_due(site: Site) -> None:
    """If it failed, each refresher would read every stored grant twice a second."""
    site.execute("INSERT INTO refresher.server (origin) SELECT 's' || i FROM generate_series(1, 50) i")
    site.execute(
        "INSERT INTO refresher.lease (name, kind, grant_id, generation, fingerprint, server, next_at) "
        "SELECT 'g' || i, 'grant', 'x' || i, 1, 'f' || i, 's' || (1 + i % 50), now() + (i - 100) * interval '1 min' "
        "FROM generate_series(1, 20000) i"
    )
    with psycopg.connect(site.url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        cursor = psycopg.ClientCursor(connection)
        values = {"servers": [], "rooms": [], "each": 8, "most": 128, "until": None, "before": None, "key_ids": []}
        cursor.execute(f"EXPLAIN {due._CLAIM}".encode(), {**values, **due._columns(()), "pid": None, "start": None})
        plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "Seq Scan on lease" not in plan, plan
    assert len(site.store.claim_due(128, each=8, rooms={})) == 100
    with site.store.database.transaction() as transaction:
        transaction.execute("SHOW jit")
        assert transaction.fetchone() == ("off",)


def test_a_demand_that_comes_while_a_grant_is_held_is_followed(site: Site) -> None:
    """If it failed, a token that a server refuses would stay until it expires, although an agent has said so."""
    host = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server:
        host.import_grant("linear", server.grant("linear"))
        assert host("run-once").code == 0
        with site.store.held("linear", stopping=lambda: False) as held:
            grant = held.recover().record
            assert isinstance(grant, Grant)
            assert not held.demanded(grant, ()).counts
            changes.demand(site.store.database, "linear", 1, None)
        assert site.store.claim_due(1, each=1, rooms={}) == {"linear": server.url}
