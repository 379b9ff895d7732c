"""Run once: look at every grant, and rotate what is due or demanded."""

import logging
from collections.abc import Callable, Sequence

import msgspec

from refresher import clocks, demands, policy, publish, store, told, urls
from refresher.config import Settings
from refresher.demands import Demands
from refresher.directories import Directories, Listing
from refresher.errors import GrantFileError
from refresher.grant import Grant, Tombstone
from refresher.policy import Rest
from refresher.result import EXIT_CODES, Result
from shim._token import is_name

__all__ = ["run_once"]

log = logging.getLogger(__name__)


class _Work(msgspec.Struct, frozen=True):
    """A name that needs the lock, the server whose queue it joins, and the generation it was seen at."""

    name: str
    server: str
    seen: int


def run_once(
    settings: Settings,
    names: Sequence[str],
    *,
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None] = lambda _: None,
) -> list[Result]:
    """Rotate what is due or demanded of ``names``, or of all grants where none is named.

    ``horizon``: seconds to the next run. ``waiting`` hears now and then which names are under way. Raises
    ``UnknownName``, ``DirectoryError`` and ``ConfigError``, all before anything is done.
    """
    directories = settings.directories
    listing = directories.listing()
    chosen = _chosen(directories, names, listing)
    asked = demands.pending(directories)
    looked = [
        _look(directories, name, listing, asked, force=force, horizon=horizon, named=name in names) for name in chosen
    ]
    work = [item for item in looked if isinstance(item, _Work)]
    results = {item.name: item for item in looked if isinstance(item, Result)}
    if work:
        for result in _do(settings, work, force, horizon, stopping, waiting):
            if result is not None:
                # On stderr at once where something went wrong: cron mails what is printed, not exit codes. Only what
                # has just happened: a grant that waits for a person is no news a minute later.
                level = logging.INFO if EXIT_CODES[result.outcome] == 0 else logging.WARNING
                log.log(level, "%s: %s: %s", result.name, result.outcome, result.detail)
                results[result.name] = result
    if gone := [name for name in names if name not in results]:
        raise store.removed(gone[0])
    return [results[name] for name in chosen if name in results]


def _chosen(directories: Directories, names: Sequence[str], listing: Listing) -> list[str]:
    # An import that was cut off has left no record yet, but something to settle.
    there = sorted(name for name in {*listing.names, *listing.unfinished} if is_name(name))
    for name in names:
        if name not in there:
            raise store.unknown(directories, name)
    return list(dict.fromkeys(names)) or there


def _look(
    directories: Directories,
    name: str,
    listing: Listing,
    asked: Demands,
    *,
    force: bool,
    horizon: float,
    named: bool,
) -> Result | _Work | None:
    """Decide without the lock, from what is on the disk, whether the lock is needed at all."""
    try:
        record = store.load(directories, name).record
    except GrantFileError as error:
        return Result(name=name, outcome="invalid_grant_file", generation=None, detail=str(error))
    unfinished = name in listing.unfinished
    if isinstance(record, Tombstone) and named:
        raise store.removed(name)
    if not isinstance(record, Grant):
        untold = record is not None and publish.is_stale(directories, record)
        return _Work(name, "", -1 if record is None else record.generation) if unfinished or untold else None
    now = clocks.now()
    demanded = asked.ask_beyond(name, record.generation)
    decision = policy.decide(record, now, demanded=demanded, force=force, horizon=horizon)
    decided = asked.are_older(name, record.generation) or (demanded and record.dead)
    unsettled = unfinished or policy.is_adrift(record, now) or publish.is_stale(directories, record)
    if isinstance(decision, Rest) and not unsettled and not decided:
        return told.rested(record, decision)
    return _Work(name, urls.origin(record.token_endpoint), record.generation)


def _do(
    settings: Settings,
    work: list[_Work],
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> list[Result | None]:
    # The one deferred import: httpx costs six times what a run with nothing due may cost.
    from refresher.exchange import trusted
    from refresher.places import run_all
    from refresher.rotation import Order, rotate

    settings.directories.ensure()
    if any(item.server.startswith("https:") for item in work):
        trusted(settings.ca_file)

    def carry_out(item: _Work) -> Result | None:
        order = Order(name=item.name, seen=item.seen, force=force, horizon=horizon)
        try:
            return rotate(settings.directories, order, ca_file=settings.ca_file, stopping=stopping)
        except Exception as error:  # noqa: BLE001  see below
            # A fault of ours in one grant must not keep the others from their rotation. No trace: it could quote.
            detail = f"a fault in refresher itself ({type(error).__name__}); please report it"
            return Result(name=item.name, outcome="storage_failed", generation=None, detail=detail)

    return run_all(
        [(item.server, item) for item in work],
        carry_out,
        stopping=stopping,
        waiting=lambda items: waiting([item.name for item in items]),
    )
