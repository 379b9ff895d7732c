"""Sealed grants in a database: keys that are lost or away, and what is kept beside the records."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.common.secret import Secret
from refresher.grants.encoding import encode_kept, key_id_of
from refresher.grants.record import Grant, Tombstone
from refresher.operations.encryption import check, names, reseal, seals
from refresher.operations.import_grant import store_grant
from refresher.operations.remove import remove
from refresher.storage import keys
from refresher.storage.directories import Directories
from refresher.storage.keys import KeyRing, Source
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.fake_state import directories
from tests.support.fleet import Fleet, import_grant, rotate_linear, spill
from tests.support.sealed import key_source, make_key
from tests.support.token_server import Gate, TokenServer

Opened = Callable[[KeyRing], PostgresStore]


@pytest.fixture
def opened(fleet: Fleet, tmp_path: Path) -> Iterator[Opened]:
    """Open the store of one host with some keys."""
    made = directories(tmp_path / "host")
    stores = []

    def open_store(ring: KeyRing) -> PostgresStore:
        stores.append(store := PostgresStore(fleet.url, msgspec.structs.replace(made, keys=ring)))
        return store

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def first(tmp_path: Path) -> Source:
    return key_source(tmp_path, "first")


@pytest.fixture
def second(tmp_path: Path) -> Source:
    return key_source(tmp_path, "second")


def _replace(store: PostgresStore, grant: Grant) -> None:
    store_grant(store, grant, replace=True, if_absent=False, stopping=lambda: False)


def _names(state: Directories, ending: str) -> list[str]:
    return [path.name for path in state.grants.iterdir() if ending in path.name]


def test_a_grant_whose_key_is_lost_is_replaced_and_kept(
    fleet: Fleet,
    opened: Opened,
    server: TokenServer,
    gate: Gate,
    first: Source,
    second: Source,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If it failed, the name would stay blocked by a spill, or the only copies would be lost if the key is found."""
    gate.opened.set()
    before, store = opened(KeyRing(first)), opened(KeyRing(second))
    grant = import_grant(before, server)
    sealed = bytes(fleet.execute("SELECT bytes FROM refresher.record")[0][0])
    path = spill(before.directories, grant)
    with pytest.raises(GrantFileError), store.held("linear", stopping=lambda: False) as held:
        held.recover()
    _replace(store, msgspec.structs.replace(grant, refresh_token=Secret("another-token")))
    assert [bytes(row[0]) for row in fleet.execute("SELECT bytes FROM refresher.orphan")] == [sealed]
    (aside,) = _names(store.directories, ".spill.aside.")
    assert aside in caplog.text
    assert "refresher.orphan" in caplog.text
    assert not path.exists()
    assert rotate_linear(store).outcome != "invalid_grant_file"
    # The key is found again.
    both = opened(KeyRing(second, first))
    assert {each.name: each.form for each in seals(both)} == {"linear": "mixed"}
    assert reseal(both, "linear", stopping=lambda: False) == 2
    assert {each.name: each.form for each in seals(store)} == {"linear": "current"}
    line, _, record = (store.directories.grants / aside).read_bytes().partition(b"\n")
    assert line.startswith(b'{"version"')
    assert key_id_of(record) is not None


def test_a_grant_whose_key_is_lost_is_removed_after_a_doubt(
    fleet: Fleet, opened: Opened, server: TokenServer, first: Source, second: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, nobody could remove a grant whose refresher was killed before its key was lost."""
    before, store = opened(KeyRing(first)), opened(KeyRing(second))
    grant = import_grant(before, server)
    spill(before.directories, grant)
    fleet.execute("UPDATE refresher.lease SET doubt_at = clock_timestamp() - interval '1 min'")
    remove(store, "linear", stopping=lambda: False)
    record = store.load("linear").record
    assert isinstance(record, Tombstone)
    assert grant.fingerprint() in record.spent
    assert fleet.execute("SELECT count(*) FROM refresher.orphan") == [(0,)]
    assert _names(store.directories, "linear.") == []
    assert "it is deleted with the grant" in caplog.text


def test_a_host_claims_nothing_that_it_could_not_store(
    fleet: Fleet, opened: Opened, server: TokenServer, first: Source, second: Source, nowhere: Source
) -> None:
    """If it failed, a host without a key would take grants from the hosts that have it, again each second."""
    import_grant(opened(KeyRing(first)), server)
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp() - interval '1 s'")
    for ring in (KeyRing(nowhere, first), KeyRing(first, None, KeyRing(nowhere))):
        with pytest.raises(KeyUnavailable):
            opened(ring).claim_due(10, each=10, rooms={})
    assert opened(KeyRing(second)).claim_due(10, each=10, rooms={}) == {}
    assert opened(KeyRing()).claim_due(10, each=10, rooms={}) == {}
    assert [*opened(KeyRing(second, first)).claim_due(10, each=10, rooms={})] == ["linear"]


def test_what_is_kept_in_a_database_and_on_its_host_is_resealed(
    fleet: Fleet, opened: Opened, server: TokenServer, first: Source, second: Source
) -> None:
    """If it failed, ``rekey`` would say that the old key is not needed, and answers could be opened no more."""
    before = opened(KeyRing(first))
    import_grant(before, server)
    answer = before.directories.grants / "linear.answer.1700000000"
    answer.touch(0o600)
    answer.write_bytes(encode_kept("linear", b"an answer", before.directories.keys))
    orphan = encode_kept("gone", b"an orphan", before.directories.keys)
    damaged = orphan.replace(b'"nonce":"', b'"nonce":"A')
    for data, at in ((damaged, "now() - interval '1 h'"), (orphan, "now()")):
        fleet.execute(f"INSERT INTO refresher.orphan VALUES (gen_random_uuid(), 'gone', NULL, %s, 'words', {at})", data)
    both, after = opened(KeyRing(second, first)), opened(KeyRing(second))
    assert {each.name: each.as_configured for each in seals(both)} == {"linear": False, "gone": False}
    assert reseal(both, "linear", stopping=lambda: False) == 2
    with pytest.raises(GrantFileError, match="delete it if it is not needed"):
        reseal(both, "gone", stopping=lambda: False)
    fleet.execute("DELETE FROM refresher.orphan WHERE at < now() - interval '1 min'")
    assert {each.name: each.form for each in seals(after)} == {"linear": "current", "gone": "current"}
    assert fleet.execute("SELECT name FROM refresher.lease") == [("linear",)]


@pytest.mark.parametrize("spilled", [True, False], ids=["a spill", "a rotation"])
def test_keys_are_read_before_a_grant_is_held(
    fleet: Fleet,
    opened: Opened,
    server: TokenServer,
    gate: Gate,
    first: Source,
    second: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spilled: bool,
) -> None:
    """If it failed, a slow source of keys would stop all refreshers that need the row or the lease."""
    grant = import_grant(opened(KeyRing(first)), server)
    if spilled:
        spill(opened(KeyRing(second)).directories, grant)
    third = Source("file", str(make_key(tmp_path, "third")))
    asked, read = [], keys._READERS["file"]

    def watch(path: str) -> bytes:
        free = fleet.execute("SELECT attempt FROM refresher.lease FOR UPDATE SKIP LOCKED")
        asked.append((Path(path).stem, free))
        return read(path)

    monkeypatch.setitem(keys._READERS, "file", watch)
    store = opened(KeyRing(second, first, KeyRing(third)))
    gate.opened.set()
    if spilled:
        assert store.commit_spills() == []
    else:
        assert rotate_linear(store).outcome == "rotated"
    assert {name for name, _ in asked} >= {"second", "third"}
    assert [free for _, free in asked] == [[(None,)]] * len(asked)


def test_a_key_for_what_is_published_changes_nothing_else(
    fleet: Fleet, opened: Opened, server: TokenServer, gate: Gate, first: Source, second: Source, tmp_path: Path
) -> None:
    """If it failed, ``enable`` or ``rekey`` for the published tokens would store refresh tokens in the clear."""
    third = key_source(tmp_path, "third")
    gate.opened.set()
    import_grant(sealed := opened(KeyRing(first, None, KeyRing(second))), server)
    assert rotate_linear(sealed).outcome == "rotated"
    before = fleet.execute("SELECT bytes FROM refresher.record")
    store = opened(KeyRing(None, first, KeyRing(third, second)))
    assert check(store, "rekey") == "published"
    assert names(store, "published") == ["linear"]
    assert reseal(store, "linear", "published", stopping=lambda: False) == 1
    assert fleet.execute("SELECT bytes FROM refresher.record") == before
    assert reseal(store, "linear", "published", stopping=lambda: False) == 0
    after = opened(KeyRing(first, None, KeyRing(third)))
    assert {each.name: each.form for each in seals(after)} == {"linear": "current"}
