"""Run once with grants in a database: rotate what is due, of all grants or of those named."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from refresher.common.errors import StorageError
from refresher.config import Settings
from refresher.grants.record import Grant
from refresher.operations import names as unknown_names
from refresher.operations.events import Emit
from refresher.operations.inspection import server_of
from refresher.operations.mirror import Mirror
from refresher.operations.result import EXIT_CODES, Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.operations.work_queue import MAX_PER_SERVER, MAX_RUNNING, run_all

if TYPE_CHECKING:
    from refresher.storage.postgres.postgres_store import PostgresStore

__all__ = ["run_once_in_database"]

log = logging.getLogger(__name__)

_PAUSE: Final = 0.2


def run_once_in_database(
    store: "PostgresStore",
    settings: Settings,
    names: Sequence[str],
    *,
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    progress: Callable[[list[str]], None],
    emit: Emit,
) -> list[Result]:
    """Rotate the grants ``names`` if they are due, or with ``force`` all of them; without names, what is due.

    Without names and ``force``, the result has only the grants that were due: there may be millions. Raises
    ``UnknownName``, ``DirectoryError``, ``ConfigError``, ``KeyUnavailable`` and ``StorageError``, all before any
    rotation starts.
    """
    if (problem := store.prepare()) is not None:
        log.warning("cannot accept demands from agents: %s", problem)
    unstored = store.commit_spills()
    for each in unstored:
        log.error("%s: %s", each.name, each.problem)
    from refresher.storage.postgres.changes import Changes

    terms = Terms(ca_file=settings.ca_file, stopping=stopping, emit=emit)

    def rotate_all(jobs: Sequence[tuple[str, Order]]) -> list[Result]:
        results = run_all(
            jobs,
            lambda order: rotate(store, order, terms),
            stopping=stopping,
            progress=lambda running: progress([order.name for order in running]),
        )
        found = [result for result in results if result is not None]
        for result in found:
            level = logging.INFO if EXIT_CODES[result.outcome] == 0 else logging.WARNING
            log.log(level, "%s: %s: %s", result.name, result.outcome, result.detail)
        return found

    # As 'refresher run' does all the time: tokens of other hosts appear here, and demands of this host count.
    mirror = Mirror(store.database, Changes(store.database), store.publisher, store.mirrors)
    mirror.publish(names)
    mirror.take_demands()
    if names or force:
        results = rotate_all(_orders(store, names, force=force, horizon=horizon))
    else:
        results = _rotate_due(store, rotate_all, horizon, stopping)
        # Not claimed here: another host may rotate them.
        results += [
            Result(each.name, "invalid_grant_file", None, each.problem) for each in unstored if store.is_held_up(each)
        ]
    with suppress(StorageError):  # the next run does the same
        mirror.publish(names)
        mirror.take_demands()
    store.release_again()
    return results


def _rotate_due(
    store: "PostgresStore",
    rotate_all: Callable[[Sequence[tuple[str, Order]]], list[Result]],
    horizon: float,
    stopping: Callable[[], bool],
) -> list[Result]:
    """Claim and rotate until nothing is due within ``horizon`` seconds; each grant once."""
    began = store.now()
    until = began + timedelta(seconds=horizon)
    results: list[Result] = []
    while not stopping():
        claimed = store.claim_due(MAX_RUNNING, each=MAX_PER_SERVER, rooms={}, until=until, before=began)
        if claimed:
            results += rotate_all(
                [(server, Order(name=name, seen=-1, horizon=horizon)) for name, server in claimed.items()]
            )
        elif store.count_due(until, began):
            store.begin_epoch()
            time.sleep(_PAUSE)  # the budget of a server is used up, or the database was promoted
        else:
            break
    store.give_back()
    return sorted(results, key=lambda result: result.name)


def _orders(store: "PostgresStore", names: Sequence[str], *, force: bool, horizon: float) -> list[tuple[str, Order]]:
    existing = store.listing(names).names
    if unknown := [name for name in names if name not in existing]:
        raise unknown_names.unknown(store, unknown[0])
    orders = []
    for name in dict.fromkeys(names or existing):
        record = store.load(name).record
        if isinstance(record, Grant):
            order = Order(name=name, seen=record.generation, force=force, horizon=horizon)
            orders.append((server_of(record), order))
        elif names:
            raise unknown_names.gone(name, record)
    return orders
