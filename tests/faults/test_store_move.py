"""A move to another store that is killed before each step: at most one side can exchange, and a second move completes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
import pytest

from refresher.common import clocks
from refresher.common.errors import ImportRefused, RefresherError, UnknownName
from refresher.grants.record import Grant, Moved, Record, Tombstone
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.move import move
from refresher.operations.remove import remove
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.store import Store
from tests.support.postgres import Cluster
from tests.support.stores import Place, open_place
from tests.support.token_server import TokenServer

WAYS = (("files", "postgresql"), ("postgresql", "files"), ("postgresql", "postgresql"))

_READS = ("SELECT", "SHOW", "BEGIN", "SET")

_FEWEST_STEPS = 15
_MOST_STEPS = 100

_OPENED = WeakKeyDictionary[Place, Store]()


class Way(NamedTuple):
    """The two places, and the server of the grants."""

    source: Place
    target: Place
    server: TokenServer
    cluster: Cluster

    def close(self) -> None:
        """Close the connections; a store that is used again makes new ones."""
        for store in _OPENED.values():
            if isinstance(store, PostgresStore):
                store.close()


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    """Two places for grants."""
    cluster: Cluster = request.getfixturevalue("postgres")
    with ExitStack() as stack:
        source, target = (
            stack.enter_context(open_place(kind, tmp_path / side, lambda: cluster))
            for kind, side in zip(request.param, ("source", "target"), strict=True)
        )
        server = stack.enter_context(TokenServer(lambda _: 3600.0, grace=0))
        _OPENED.clear()
        yield Way(source, target, server, cluster)


def _import(way: Way, name: str) -> None:
    parsed = import_request.parse(name, json.dumps(way.server.grant(name)).encode(), clocks.now())
    store = _store(way.source)
    store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False)
    assert _rotate(store, name) == "rotated"


def _rotate(store: Store, name: str) -> str | None:
    record = store.load(name).record
    seen = -1 if record is None else record.generation
    result = rotate(store, Order(name=name, seen=seen, force=True), Terms(ca_file=None, stopping=lambda: False))
    return None if result is None else result.outcome


def _store(place: Place) -> Store:
    """Return the store of this process: each new one makes new connections."""
    if place not in _OPENED:
        _OPENED[place] = place.open()
    return _OPENED[place]


def _record(place: Place, name: str) -> Record | None:
    return _store(place).load(name).record


def _move(way: Way, name: str) -> str:
    return move(_store(way.source), _store(way.target), name, stopping=lambda: False)


def _active(way: Way, name: str) -> list[Grant]:
    records = [_record(place, name) for place in (way.source, way.target)]
    return [record for record in records if isinstance(record, Grant)]


def _in_child(way: Way, name: str, before_each: Callable[[], None]) -> int:
    """Move ``name`` in another process, which calls ``before_each`` before each step; return its wait status."""
    way.close()
    if (child := os.fork()) != 0:
        return os.waitpid(child, 0)[1]
    try:
        _intercept(before_each)
        _move(way, name)
        os._exit(0)
    except BaseException:  # noqa: BLE001  pytest must not go on in this process
        os._exit(1)


def _intercept(before_each: Callable[[], None]) -> None:
    """Call ``before_each`` before each statement that changes something, each COMMIT, and each change of a file."""
    for owner in (psycopg.Connection, psycopg.Cursor):

        def execute(self: Any, query: Any, *more: Any, plain: Any = owner.execute, **options: Any) -> Any:
            text = query.decode() if isinstance(query, bytes) else str(query)
            # A connection executes by a cursor, which counts once.
            if isinstance(self, psycopg.Cursor) and not text.lstrip().startswith(_READS):
                before_each()
            return plain(self, query, *more, **options)

        owner.execute = execute  # type: ignore[method-assign]
    for name in ("rename", "replace", "unlink"):
        setattr(os, name, _after(before_each, getattr(os, name)))


def _after(before: Callable[[], None], plain: Callable[..., Any]) -> Callable[..., Any]:
    def changing(*arguments: Any, **options: Any) -> Any:
        before()
        return plain(*arguments, **options)

    return changing


def _end_leases(way: Way) -> None:
    """Let the leases of a killed process end now."""
    for place in (way.source, way.target):
        if place.url is not None:
            way.cluster.execute(
                "UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s' WHERE attempt IS NOT NULL",
                place.url.rpartition("/")[2],
            )


def _fingerprints(place: Place) -> list[str | None]:
    store = _store(place)
    records = [store.load(name).record for name in store.listing().names]
    return [record.fingerprint() for record in records if isinstance(record, Grant | Moved)]


def test_a_kill_before_each_step_leaves_at_most_one_side_that_can_exchange(way: Way) -> None:
    """If it failed, two stores would send one refresh token, or none would have it."""
    # Each step of a database is killed in the other two ways.
    every = 3 if way.source.url and way.target.url else 1
    for number in range(0, _MOST_STEPS, every):
        name = f"grant-{number}"
        _import(way, name)
        left = [number]

        def kill(left: list[int] = left) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        status = _in_child(way, name, kill)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break  # it had fewer steps
        _end_leases(way)
        assert len(_active(way, name)) <= 1, number
        if number % 2:
            # Each side rotates what it can before anybody repeats the move.
            outcomes = [_rotate(_store(place), name) for place in (way.source, way.target)]
            assert outcomes.count("rotated") == len(_active(way, name)), (number, outcomes)
        assert _move(way, name) in ("moved", "completed", "there"), number
        (grant,) = _active(way, name)
        assert isinstance(_record(way.target, name), Grant), number
        assert isinstance(_record(way.source, name), Moved), number
        assert _rotate(_store(way.target), name) == "rotated", number
        after = _record(way.target, name)
        assert isinstance(after, Grant)
        assert (after.generation, after.grant_id) == (grant.generation + 1, grant.grant_id)
        assert way.server.reused == 0, number
        assert _rotate(_store(way.source), name) is None
    assert _FEWEST_STEPS < number < _MOST_STEPS - 1
    for place in (way.source, way.target):
        known = [each for each in _fingerprints(place) if each is not None]
        assert len(known) == len(set(known))
    assert _fingerprints(way.source) == [None] * (number // every + 1)


def test_a_grant_moves_there_and_back(way: Way) -> None:
    """If it failed, a move would lose the generation, the spent refresh tokens or the token of agents."""
    _import(way, "linear")
    before = _record(way.source, "linear")
    published = _store(way.source).directories.token("linear").read_bytes()
    assert isinstance(before, Grant)
    assert _move(way, "linear") == "moved"
    assert _move(way, "linear") == "there"
    there = _record(way.target, "linear")
    assert isinstance(there, Grant)
    assert (there.generation, there.spent, there.refresh_token) == (
        before.generation,
        before.spent,
        before.refresh_token,
    )
    for place in (way.source, way.target):
        assert _store(place).directories.token("linear").read_bytes() == published
    back = way._replace(source=way.target, target=way.source)
    assert _move(back, "linear") == "moved"
    assert _rotate(_store(way.source), "linear") == "rotated"
    assert _move(way, "linear") == "moved"
    assert _rotate(_store(way.target), "linear") == "rotated"
    after = _record(way.target, "linear")
    assert isinstance(after, Grant)
    assert after.generation == before.generation + 2
    assert {*before.spent, before.fingerprint()} < {*after.spent}
    assert way.server.reused == 0


def test_what_must_not_be_replaced_stays(way: Way) -> None:
    """If it failed, a move would replace another login, or two names would have one refresh token."""
    _import(way, "linear")
    grant = _record(way.source, "linear")
    assert isinstance(grant, Grant)
    other = import_request.parse("linear", json.dumps(way.server.grant("other")).encode(), clocks.now())
    kept = store_grant(_store(way.target), other, replace=False, if_absent=False, stopping=lambda: False).grant
    with pytest.raises(ImportRefused, match="another grant linear"):
        _move(way, "linear")
    there = _record(way.target, "linear")
    assert isinstance(there, Grant)
    assert (there.grant_id, there.refresh_token) == (kept.grant_id, kept.refresh_token)
    remove(_store(way.target), "linear", stopping=lambda: False)
    fields = {
        "token_endpoint": way.server.token_endpoint,
        "client_id": "linear",
        "refresh_token": grant.refresh_token.reveal() if grant.refresh_token else "",
        "server_url": "https://mcp.example/mcp",
    }
    twin = import_request.parse("twin", json.dumps(fields).encode(), clocks.now())
    store_grant(_store(way.target), twin, replace=False, if_absent=False, stopping=lambda: False)
    with pytest.raises(ImportRefused, match="twin holds this refresh token"):
        _move(way, "linear")
    here = _record(way.source, "linear")
    assert isinstance(here, Grant)
    assert (here.grant_id, here.refresh_token) == (grant.grant_id, grant.refresh_token)
    remove(_store(way.target), "twin", stopping=lambda: False)
    assert _move(way, "linear") == "moved"
    moved = _record(way.target, "linear")
    assert isinstance(moved, Grant)
    assert moved.generation > kept.generation  # that of the grant that was removed there
    again = import_request.parse("linear", json.dumps(way.server.grant("third")).encode(), clocks.now())
    with pytest.raises(UnknownName, match="was moved to"):
        store_grant(_store(way.source), again, replace=False, if_absent=False, stopping=lambda: False)
    with pytest.raises(UnknownName, match="was moved to"):
        remove(_store(way.source), "linear", stopping=lambda: False)
    assert not isinstance(_record(way.source, "linear"), Tombstone)


def test_a_copy_of_an_earlier_try_is_replaced(way: Way) -> None:
    """If it failed, a move that was repeated would bring back a refresh token that was spent since."""
    _import(way, "linear")
    source = way.source.open()

    class Refusing:
        """The held grant of a store that fails when the grant should leave."""

        def __init__(self, held: Any) -> None:
            self._held = held

        def __getattr__(self, name: str) -> Any:
            return getattr(self._held, name)

        def write(self, *_: Any) -> Any:
            raise RefresherError("the disk fails")

    plain = source.held

    class Held(ExitStack):
        """A store's ``held`` that gives ``Refusing``."""

        def __init__(self, name: str, options: dict[str, Any]) -> None:
            super().__init__()
            self._given = (name, options)

        def __enter__(self) -> Any:
            super().__enter__()
            name, options = self._given
            return Refusing(self.enter_context(plain(name, **options)))

    source.held = lambda name, **options: Held(name, options)  # type: ignore[method-assign]
    with pytest.raises(RefresherError, match="the disk fails"):
        move(source, _store(way.target), "linear", stopping=lambda: False)
    waiting = _record(way.target, "linear")
    assert isinstance(waiting, Moved)
    assert waiting.arriving is not None
    assert _rotate(_store(way.target), "linear") is None
    with suppress(UnknownName):
        remove(_store(way.target), "linear", stopping=lambda: False)
    assert _rotate(_store(way.source), "linear") == "rotated"
    assert _move(way, "linear") == "moved"
    assert _rotate(_store(way.target), "linear") == "rotated"
    assert way.server.reused == 0


def test_a_late_answer_does_not_bring_a_grant_back_that_was_moved(postgres: Cluster, tmp_path: Path) -> None:
    """If it failed, a client with no refresh token would be active in two stores after a late answer."""
    with (
        open_place("postgresql", tmp_path / "a", lambda: postgres) as first,
        open_place("files", tmp_path / "b", lambda: postgres) as second,
        TokenServer(lambda _: 3600.0) as server,
    ):
        fields = server.grant("client") | {"grant_type": "client_credentials", "client_secret": "made-up-secret"}
        del fields["refresh_token"]
        parsed = import_request.parse("linear", json.dumps(fields).encode(), clocks.now())
        store = first.open()
        assert isinstance(store, PostgresStore)
        grant = store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False).grant
        with store.held("linear", stopping=lambda: False) as held:
            attempt = held.begin(held.recover(), grant, lambda: None)
            attempt.before_first_byte()
        name = (first.url or "").rpartition("/")[2]
        postgres.execute(
            "UPDATE refresher.lease SET until = clock_timestamp() - interval '1 s', "
            "armed_at = clock_timestamp() - interval '1 h'",
            name,
        )
        assert move(first.open(), second.open(), "linear", stopping=lambda: False) == "moved"
        attempt.persist(grant, until_saved=True)
        assert isinstance(_record(first, "linear"), Moved)
        assert isinstance(_record(second, "linear"), Grant)
