"""Run once: look at every grant, and rotate what is due or demanded."""

import logging
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from refresher import clocks, demands, policy, publish, store, told
from refresher.config import Settings
from refresher.demands import Demands
from refresher.directories import Directories, Listing
from refresher.errors import GrantFileError, UnknownName
from refresher.grant import Grant
from refresher.policy import Rest
from refresher.result import Result
from shim._token import is_name

__all__ = ["run_once"]

log = logging.getLogger(__name__)


class _Work(msgspec.Struct, frozen=True):
    """A name that needs the lock, the server whose queue it joins, and the generation it was seen at."""

    name: str
    server: str
    seen: int
    told: bool
    """Whether its result is reported; a removed grant is only published."""


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
    ``UnknownName`` before anything is done, and ``DirectoryError``.
    """
    directories = settings.directories
    listing = directories.listing()
    chosen = _chosen(names, listing)
    asked = demands.pending(directories)
    looked = [_look(directories, name, listing, asked, force=force, horizon=horizon) for name in chosen]
    work = [item for item in looked if isinstance(item, _Work)]
    results = {item.name: item for item in looked if isinstance(item, Result)}
    if work:
        for item, result in zip(work, _do(settings, work, force, horizon, stopping, waiting), strict=True):
            if item.told:
                results[item.name] = result
    for name in names:
        if name not in results:
            raise UnknownName(f"{name} was removed; 'refresher import {name}' brings it back")
    return [results[name] for name in chosen if name in results]


def _chosen(names: Sequence[str], listing: Listing) -> list[str]:
    for name in names:
        if name not in listing.names:
            known = ", ".join(listing.names[:10]) or "none yet"
            raise UnknownName(f"there is no grant named {name!r} (known: {known})")
    return list(dict.fromkeys(names)) or [name for name in listing.names if is_name(name)]


def _look(
    directories: Directories, name: str, listing: Listing, asked: Demands, *, force: bool, horizon: float
) -> Result | _Work | None:
    """Decide without the lock, from what is on the disk, whether the lock is needed at all."""
    try:
        record = store.load(directories, name).record
    except GrantFileError as error:
        return Result(name=name, outcome="invalid_grant_file", generation=None, detail=str(error))
    if record is None:
        return None
    unsettled = name in listing.unfinished or publish.is_stale(directories, record)
    if not isinstance(record, Grant):
        return _Work(name, "", record.generation, told=False) if unsettled else None
    asked_for = asked.of(name)
    decision = policy.decide(
        record, clocks.now(), demanded=record.generation in asked_for, force=force, horizon=horizon
    )
    decided = asked_for if record.dead else asked_for - {record.generation}
    if isinstance(decision, Rest) and not unsettled and not decided:
        return told.rested(record, decision)
    return _Work(name, urlsplit(record.token_endpoint).netloc, record.generation, told=True)


def _do(
    settings: Settings,
    work: list[_Work],
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> list[Result]:
    # The one deferred import: httpx costs six times what a run with nothing due may cost.
    from refresher.places import run_all
    from refresher.rotation import Order, rotate

    def carry_out(item: _Work) -> Result:
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
