"""New tokens that the database did not take, in files of one host: damaged, of another key, of an earlier login."""

import json
import uuid
from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret
from refresher.daemon.database_loop import Keeper
from refresher.operations.import_grant import store_grant
from refresher.storage.keys import KeyRing
from refresher.storage.postgres import spills
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.command import wait_until
from tests.support.fake_state import directories
from tests.support.fleet import Fleet, import_grant, record_of, rotate_linear, spill
from tests.support.sealed import key_source
from tests.support.token_server import Gate, TokenServer


@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "sealed"])
def test_a_spill_that_was_changed_by_a_bit_is_refused_and_kept(
    fleet: Fleet, server: TokenServer, gate: Gate, tmp_path: Path, *, is_sealed: bool
) -> None:
    """If it failed, the only copy of a token would be put aside as that of another grant, and a spent one be sent (I6)."""
    gate.opened.set()
    made = directories(tmp_path / "host")
    keys = KeyRing(key_source(tmp_path, "key") if is_sealed else None)
    store = PostgresStore(fleet.url, msgspec.structs.replace(made, keys=keys))
    path = spill(store.directories, import_grant(store, server))
    whole = path.read_bytes()
    line = len(whole.partition(b"\n")[0])
    for place in {*range(line + 2), *range(line + 2, len(whole), 37)}:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(GrantFileError):
            spills.read(store.directories, path)
    assert [each.name for each in store.commit_spills()] == ["linear"]
    assert path.exists()
    assert fleet.execute("SELECT count(*) FROM refresher.orphan") == [(0,)]
    path.write_bytes(whole)
    assert store.commit_spills() == []
    assert record_of(store).generation == 1
    store.close()


def test_a_spill_of_an_earlier_version_is_stored_if_it_is_plain(
    fleet: Fleet, server: TokenServer, gate: Gate, tmp_path: Path
) -> None:
    """If it failed, an upgrade would lose a token that waits for its database; or a sealed spill could lose its seal."""
    gate.opened.set()
    plain = fleet.host("a")
    sealed = PostgresStore(
        fleet.url, msgspec.structs.replace(directories(tmp_path / "b"), keys=KeyRing(key_source(tmp_path, "key")))
    )
    grant = import_grant(plain, server)
    for store in (sealed, plain):
        path = spill(store.directories, grant)
        line, _, data = path.read_bytes().partition(b"\n")
        path.write_bytes(json.dumps(json.loads(line) | {"version": 1}).encode() + b"\n" + data)
    (left,) = sealed.commit_spills()
    assert "is damaged" in left.problem
    assert plain.commit_spills() == []
    assert record_of(plain).generation == 1
    sealed.close()


def test_a_host_leaves_to_others_what_it_cannot_open(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, one damaged file on one host would stop the rotation of a grant on all hosts."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    path = spill(first.directories, import_grant(first, server))
    path.write_bytes(path.read_bytes()[:-9])
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp()")
    assert [each.name for each in first.commit_spills()] == ["linear"]
    assert first.claim_due(9, each=9, rooms={}) == {}
    assert rotate_linear(first).outcome == "invalid_grant_file"
    assert second.claim_due(9, each=9, rooms={}) == {"linear": server.url}
    assert rotate_linear(second).outcome == "rotated"


def test_a_spill_of_an_earlier_login_holds_up_nothing(
    fleet: Fleet, server: TokenServer, gate: Gate, tmp_path: Path
) -> None:
    """If it failed, a new login on another host would not be rotated here until somebody deletes a file."""
    gate.opened.set()
    other = PostgresStore(
        fleet.url, msgspec.structs.replace(directories(tmp_path / "own"), keys=KeyRing(key_source(tmp_path, "key")))
    )
    blind = PostgresStore(fleet.url, directories(tmp_path / "own"))
    grant = import_grant(blind, server)
    path = spill(other.directories, grant)
    token = Secret(server.grant("another")["refresh_token"])
    again = msgspec.structs.replace(grant, grant_id=uuid.uuid4().hex, refresh_token=token)
    store_grant(fleet.host("b"), again, replace=True, if_absent=False, stopping=lambda: False)
    fleet.execute("UPDATE refresher.lease SET next_at = clock_timestamp()")
    assert [each.name for each in blind.commit_spills()] == ["linear"]
    assert blind.claim_due(9, each=9, rooms={}) == {"linear": server.url}
    assert rotate_linear(blind).outcome == "rotated"
    assert path.exists(), "nobody knows without the key what is in it"
    other.close()
    blind.close()


def test_a_service_reports_what_it_cannot_rotate(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, health and hooks would say nothing of a grant that this host leaves alone until it has expired."""
    gate.opened.set()
    store = fleet.host("a")
    path = spill(store.directories, import_grant(store, server))
    path.write_bytes(path.read_bytes()[:-9])
    reported = dict[str, str]()
    keeper = Keeper(store, reported.__setitem__)
    wait_until(lambda: "linear" in reported, "it is reported")
    keeper.stop()
    assert str(path) in reported["linear"]
