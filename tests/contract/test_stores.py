"""What every store promises: files of one machine, and PostgreSQL for many hosts, pass the same tests."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refresher.common import clocks
from refresher.common.errors import AlreadySpent, ImportRefused, LockBusy, UnknownName
from refresher.common.secret import Secret
from refresher.grants.record import Grant, Tombstone
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.inspection import list_grants
from refresher.operations.remove import remove
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.store import Store
from shim._token import parse
from tests.support.postgres import Cluster
from tests.support.stores import KINDS, Place, open_place
from tests.support.token_server import Gate, TokenServer

LIFE = 3600.0


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place for grants, of each kind."""

    def cluster() -> Cluster:
        found: Cluster = request.getfixturevalue("postgres")
        return found

    with open_place(request.param, tmp_path, cluster) as made:
        yield made


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer(lambda _: LIFE, grace=0) as made:
        yield made


def _import(store: Store, name: str, fields: dict[str, Any], **how: Any) -> Grant:
    parsed = import_request.parse(name, json.dumps(fields).encode(), clocks.now())
    how = dict[str, Any]({"replace": False, "if_absent": False, "stopping": lambda: False}) | how
    return store_grant(store, parsed, **how).grant


def _rotate(store: Store, name: str = "linear", *, seen: int | None = None, force: bool = True) -> Result:
    if seen is None:
        record = store.load(name).record
        seen = -1 if record is None else record.generation
    result = rotate(store, Order(name=name, seen=seen, force=force), Terms(ca_file=None, stopping=lambda: False))
    assert result is not None
    return result


def _grant(store: Store, name: str = "linear") -> Grant:
    record = store.load(name).record
    assert isinstance(record, Grant)
    return record


def _published(store: Store, name: str = "linear") -> str | None:
    return parse((store.directories.tokens / f"{name}.json").read_bytes()).access_token


def test_a_rotation_is_stored_and_published(place: Place, server: TokenServer) -> None:
    """If it failed, a store would lose what a server has issued, or agents would not see it."""
    store = place.open()
    _import(store, "linear", server.grant("client"))
    for generation in (1, 2, 3):
        assert _rotate(store).outcome == "rotated"
        grant = _grant(place.open())
        assert grant.generation == generation
        assert grant.access_token is not None
        assert _published(store) == grant.access_token.reveal()
    assert len(server.asked["client"]) == 3
    assert server.reused == 0
    assert len(grant.spent) == 3


def test_what_is_not_due_is_not_rotated(place: Place, server: TokenServer) -> None:
    """If it failed, each run would spend a refresh token."""
    store = place.open()
    _import(store, "linear", server.grant("client"))
    assert _rotate(store, force=False).outcome == "rotated"
    assert _rotate(store, force=False).outcome == "not_due"
    assert len(server.asked["client"]) == 1


def test_of_many_that_rotate_at_once_one_sends(place: Place, server: TokenServer) -> None:
    """If it failed, two processes would send one refresh token, and the server would end the login (I3)."""
    _import(place.open(), "linear", server.grant("client"))
    results: list[str] = []

    def one(number: int) -> None:
        results.append(_rotate(place.open(f"host-{number}"), seen=0).outcome)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert sorted(results) == ["adopted"] * 5 + ["rotated"]
    assert server.reused == 0


def test_a_name_that_is_held_is_waited_for(place: Place, server: TokenServer) -> None:
    """If it failed, a second process would send while the first waits for its answer (I3)."""
    gate = Gate()
    with TokenServer(lambda _: LIFE, gate, grace=0) as slow:
        _import(place.open(), "linear", slow.grant("client"))
        first = threading.Thread(target=lambda: _rotate(place.open()))
        first.start()
        assert gate.reached.wait(60)
        with pytest.raises(LockBusy), place.open("another").held("linear", stopping=lambda: False, wait=0.3):
            pass
        gate.opened.set()
        first.join(60)
        assert _grant(place.open()).generation == 1


def test_a_refresh_token_has_one_name(place: Place, server: TokenServer) -> None:
    """If it failed, two names would rotate one refresh token, and the server would end the login (I3)."""
    store, fields = place.open(), server.grant("client")
    _import(store, "linear", fields)
    with pytest.raises(ImportRefused, match="linear holds this refresh token already"):
        _import(store, "second", fields)
    assert [name for name, _ in list_grants(store)] == ["linear"]
    _rotate(store)
    with pytest.raises(ImportRefused, match="linear has already spent this refresh token"):
        _import(store, "second", fields)
    with pytest.raises(AlreadySpent):
        _import(store, "linear", fields, replace=True)


def test_a_removed_grant_is_published_as_removed(place: Place, server: TokenServer) -> None:
    """If it failed, agents would go on with the token of a login that a person has ended."""
    store, fields = place.open(), server.grant("client")
    _import(store, "linear", fields)
    _rotate(store)
    remove(store, "linear", stopping=lambda: False)
    assert isinstance(store.load("linear").record, Tombstone)
    assert parse((store.directories.tokens / "linear.json").read_bytes()).state == "removed"
    assert list_grants(store) == []
    with pytest.raises(UnknownName):
        list_grants(store, ("linear",))
    with pytest.raises(AlreadySpent):
        _import(store, "linear", fields)
    assert _import(store, "linear", server.grant("client")).generation > 1


def test_a_new_login_replaces_the_grant(place: Place, server: TokenServer) -> None:
    """If it failed, a person could not bring a grant back, or its generation would fall."""
    store = place.open()
    _import(store, "linear", server.grant("client"))
    _rotate(store)
    with pytest.raises(ImportRefused, match="linear exists"):
        _import(store, "linear", server.grant("client"))
    replaced = _import(store, "linear", server.grant("client"), replace=True, just_issued=True)
    assert replaced.generation == 2
    assert _rotate(store).generation == 3


def test_a_rejection_keeps_the_token_and_asks_for_a_person(place: Place, server: TokenServer) -> None:
    """If it failed, a login that has ended would be tried for ever, or its live access token would vanish (I5)."""
    store = place.open()
    fields = server.grant("client")
    _import(store, "linear", fields)
    _rotate(store)
    issued = _published(store)
    server._end("client")
    assert _rotate(store).outcome == "reauthorization_required"
    assert _published(store) == issued
    assert _grant(store).dead
    assert _rotate(store, force=False).outcome == "reauthorization_required"
    assert len(server.asked["client"]) == 2


def test_a_server_that_is_away_costs_nothing(place: Place, server: TokenServer) -> None:
    """If it failed, a server that cannot be reached would put a grant in doubt."""
    store = place.open()
    with TokenServer(lambda _: LIFE) as gone:
        fields = gone.grant("client")
    _import(store, "linear", fields)
    assert _rotate(store).outcome == "transient"
    grant = _grant(store)
    assert grant.doubt is None
    assert grant.failures == 1
    assert grant.refresh_token == Secret(fields["refresh_token"])
