"""What a host of agents may do in the database, and how it learns of a change."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from refresher.common.errors import StorageError
from refresher.operations.mirror import Mirror
from refresher.storage.postgres import changes, database, migrations
from refresher.storage.postgres.changes import CHANNEL, Changes, Listener
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.publishing import Publisher, read_published
from shim._token import TokenFile, render
from tests.support.cut_proxy import CutProxy
from tests.support.fake_state import directories
from tests.support.postgres import Cluster


@pytest.fixture
def url(tmp_path: Path, postgres: Cluster) -> Iterator[str]:
    with postgres.database() as made:
        store = PostgresStore(made, directories(tmp_path / "look"))
        migrations.migrate(store.database)
        store.close()
        yield made


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """A role of the server without rights, whose name starts no pattern."""
    made = f"host_{uuid.uuid4().hex[:8]}"
    _execute(url, f"CREATE ROLE {made} LOGIN")
    yield made
    _execute(url, f"DROP OWNED BY {made}")
    _execute(url, f"DROP ROLE {made}")


def _execute(url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def _store(url: str, *names: str) -> None:
    """Store records that nothing here reads."""
    for name in names:
        _execute(
            url, "INSERT INTO refresher.lease (name, kind, grant_id, generation) VALUES (%s, 'grant', 'id', 3)", name
        )
        _execute(url, "INSERT INTO refresher.record VALUES (%s, 'secret', 3, %s)", name, name.encode())


def _token(name: str, generation: int, issued_at: float = 1.0) -> TokenFile:
    return TokenFile(
        name=name,
        grant_id="id",
        generation=generation,
        state="active",
        access_token="an-access-token",
        token_type="Bearer",
        issued_at=issued_at,
        expires_at=None,
        scope=None,
        origins=("https://mcp.example",),
        error=None,
    )


def test_a_pattern_of_a_role_means_the_names_that_a_person_reads_in_it(url: str, role: str) -> None:
    """If it failed, a host of agents would get the tokens of another team."""
    _store(url, "team_a-x", "team-a-x", "team_b-y", "b1", "b22", "c")
    own = Database(url.replace("//owner@", f"//{role}@"))
    for pattern in ("team_a-*", "b?"):
        _execute(url, "SELECT refresher.allow_mirror(%s, %s)", role, pattern)
    _, copies = Changes(own).read()
    assert {copy.name for copy in copies} == {"team_a-x", "b1"}
    assert changes.generation_of(own, "team_a-x") == 3
    assert changes.generation_of(own, "c") == -1
    _execute(url, "DELETE FROM refresher.mirror WHERE pattern = 'b?'")
    _, copies = Changes(own).read()
    assert [copy.name for copy in copies] == ["team_a-x"]
    own.close()


def test_a_role_demands_and_reports_under_its_names_only(url: str, role: str) -> None:
    """If it failed, a host of agents could not act on what its agents see, or could disturb the grants of others."""
    _store(url, "team-one", "other")
    _execute(url, "SELECT refresher.allow_mirror(%s, 'team-*')", role)
    own = Database(url.replace("//owner@", f"//{role}@"))
    for _ in range(2):  # the second changes nothing
        changes.demand(own, "team-one", 3, None)
        changes.report_seen(own, _token("team-one", 5))
    with pytest.raises(StorageError, match="row-level security"):
        changes.demand(own, "other", 3, None)
    with pytest.raises(StorageError, match="row-level security"):
        changes.report_seen(own, _token("other", 5))
    assert _execute(url, "SELECT name, generation FROM refresher.demand") == [("team-one", 3)]
    assert _execute(url, "SELECT name, generation FROM refresher.seen") == [("team-one", 5)]
    assert _execute(url, "SELECT name FROM refresher.lease WHERE next_at <= clock_timestamp()") == [("team-one",)]
    own.close()


def test_a_demand_stays_until_this_host_has_the_new_token(url: str, tmp_path: Path) -> None:
    """If it failed, an agent would read the token again that a server refuses, and demand nothing more."""
    _store(url, "linear")
    publish = "UPDATE refresher.record SET xid = pg_current_xact_id(), generation = %s, published = %s"
    _execute(url, publish, 3, render(_token("linear", 3)))
    own = Database(url)
    publisher = Publisher(directories(tmp_path / "host"))
    mirror = Mirror(own, Changes(own), publisher, lambda _: True)
    mirror.publish()
    demand = publisher.directories.demands / "linear.3"
    demand.touch()
    mirror.take_demands()
    assert _execute(url, "SELECT name, generation FROM refresher.demand") == [("linear", 3)]
    # A refresher has rotated, and this host does not know it yet.
    _execute(url, "DELETE FROM refresher.demand")
    _execute(url, publish, 4, render(_token("linear", 4)))
    mirror.take_demands()
    assert demand.exists()
    mirror.publish()
    mirror.take_demands()
    assert not demand.exists()
    assert _execute(url, "SELECT * FROM refresher.demand") == []
    own.close()


def test_a_report_that_is_refused_holds_up_no_other_name(url: str, role: str, tmp_path: Path) -> None:
    """If it failed, one restored grant would keep the new tokens of all others from the agents of a host."""
    _store(url, "a-later", "b-other")
    _execute(url, "SELECT refresher.allow_mirror(%s, '*')", role)
    _execute(url, f"REVOKE ALL ON refresher.seen FROM {role}")
    own = Database(url.replace("//owner@", f"//{role}@"))
    publisher = Publisher(directories(tmp_path / "host"))
    publisher.publish_copy(_token("a-later", 5), render(_token("a-later", 5)))
    mirror = Mirror(own, Changes(own), publisher, lambda _: True)
    for generation in (3, 4):
        # Each round writes both names in one transaction, so that the mirror reads them together.
        _execute(
            url,
            "UPDATE refresher.record SET xid = pg_current_xact_id(), "
            "published = CASE name WHEN 'a-later' THEN %s ELSE %s END",
            render(_token("a-later", 3)),
            render(_token("b-other", generation)),
        )
        mirror.publish()
        shown = read_published(publisher.directories, "b-other")
        assert shown is not None
        assert shown.generation == generation
    _execute(url, f"GRANT INSERT ON refresher.seen TO {role}")
    mirror.publish()
    assert _execute(url, "SELECT name, generation FROM refresher.seen") == [("a-later", 5)]
    own.close()


@pytest.mark.parametrize(
    ("generation", "issued_at"), [(2**62, 1.0), (-1, 1.0), (5, float("nan")), (5, float("inf")), (5, -1.0)]
)
def test_a_report_that_no_token_file_can_have_is_refused(
    url: str, role: str, generation: int, issued_at: float
) -> None:
    """If it failed, a host of agents that is taken over could make a record that no refresher can read or rotate."""
    _store(url, "linear")
    _execute(url, "SELECT refresher.allow_mirror(%s, '*')", role)
    own = Database(url.replace("//owner@", f"//{role}@"))
    with pytest.raises(StorageError, match="check constraint"):
        changes.report_seen(own, _token("linear", generation, issued_at))
    own.close()


def test_a_listener_replaces_a_connection_that_became_silent(
    url: str, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, one lost packet would make each later publication slower, until the process is started again."""
    monkeypatch.setattr(database, "_LONGEST", 1.0)
    woken = threading.Event()
    with CutProxy(postgres.port) as proxy:
        proxy.mute = b"LISTEN"
        by_proxy = Database(url.replace(f":{postgres.port}/", f":{proxy.port}/"))
        listener = Listener(by_proxy, woken.set)
        thread = threading.Thread(target=listener.run, daemon=True)
        thread.start()
        assert proxy.muted.wait(60)
        proxy.mute = b""
        assert woken.wait(60)  # a new connection listens
        woken.clear()
        _execute(url, f"NOTIFY {CHANNEL}")
        assert woken.wait(60)
        listener.stop()
        _execute(url, f"NOTIFY {CHANNEL}")
        thread.join(60)
        assert not thread.is_alive()
