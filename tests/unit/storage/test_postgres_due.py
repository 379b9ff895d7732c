"""Claims of what is due: shared by refreshers, fair across servers, and within their budget."""

import threading

from refresher.common import clocks
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.fleet import Fleet, import_grant, rotate_linear
from tests.support.token_server import Gate, TokenServer


def _make_due(fleet: Fleet, servers: int, each: int) -> None:
    """Store grants of several servers that are due, without a record: claims read no record."""
    fleet.execute(
        "INSERT INTO refresher.server (origin) SELECT 'https://as-' || s || '.example' FROM generate_series(1, %s) s",
        servers,
    )
    fleet.execute(
        "INSERT INTO refresher.lease (name, kind, grant_id, generation, fingerprint, server, next_at) "
        "SELECT 'g-' || s || '-' || n, 'grant', 'id', 1, s || '-' || n, 'https://as-' || s || '.example', "
        "clock_timestamp() - interval '1 s' FROM generate_series(1, %s) s, generate_series(1, %s) n",
        servers,
        each,
    )


def _claim(store: PostgresStore, most: int = 128, each: int = 8, **rooms: int) -> list[str]:
    return [*store.claim_due(most, each=each, rooms=rooms)]


def test_refreshers_share_what_is_due(fleet: Fleet) -> None:
    """If it failed, two refreshers would claim one grant, or a grant that is due would be claimed by none."""
    _make_due(fleet, 5, 8)
    claimed: list[list[str]] = []
    stores = [fleet.host(f"host-{number}") for number in range(4)]

    def one(store: PostgresStore) -> None:
        mine: list[str] = []
        for _ in range(10):  # a server that another is claiming from is skipped
            mine += _claim(store, most=4)
        claimed.append(mine)

    threads = [threading.Thread(target=one, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    names = [name for each in claimed for name in each]
    assert len(names) == len(set(names)) == 40


def test_the_budget_of_a_server_holds_across_refreshers(fleet: Fleet) -> None:
    """If it failed, ten refreshers would send ten times as many requests as a server accepts."""
    _make_due(fleet, 1, 500)
    first, second = fleet.host("a"), fleet.host("b")
    began = clocks.now().wall
    names = [name for _ in range(10) for store in (first, second) for name in _claim(store, each=30)]
    most = 40 + 20 * (clocks.now().wall - began) + 1
    assert 40 <= len(names) <= most
    assert len(names) == len(set(names))


def test_a_server_that_is_busy_is_left_alone_and_the_others_are_served(fleet: Fleet) -> None:
    """If it failed, one server that is away would hold up the grants of all others."""
    _make_due(fleet, 3, 20)
    store = fleet.host("a")
    fleet.execute(
        "UPDATE refresher.server SET held_until = clock_timestamp() + interval '1 h' WHERE origin LIKE '%%as-1%%'"
    )
    names = _claim(store, **{"https://as-2.example": 1})
    assert sorted({name[:4] for name in names}) == ["g-2-", "g-3-"]
    assert sum(name.startswith("g-2-") for name in names) == 1
    assert sum(name.startswith("g-3-") for name in names) == 8


def test_the_grant_of_a_dead_holder_becomes_due(fleet: Fleet, server: TokenServer, gate: Gate) -> None:
    """If it failed, a grant whose holder was killed would never be rotated again."""
    gate.opened.set()
    first, second = fleet.host("a"), fleet.host("b")
    import_grant(first, server)
    assert _claim(first) == ["linear"]
    assert _claim(second) == []
    fleet.end_lease()
    assert second.claim_due(1, each=1, rooms={}) == {"linear": server.url}
    assert rotate_linear(second, force=False).outcome == "rotated"
    assert _claim(second) == []
