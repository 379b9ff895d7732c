"""Inspect grants without their locks: what is on the disk, and what has to be done."""

from collections.abc import Collection, Sequence
from functools import partial

import msgspec

from refresher.common import clocks
from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.grants import policy, refresh_life
from refresher.grants.encoding import require_key
from refresher.grants.policy import Decision, Rotate
from refresher.grants.record import Grant, Moved, Record
from refresher.grants.sources import is_renewed
from refresher.oauth import urls
from refresher.operations.cycles import sources_of
from refresher.operations.names import gone
from refresher.operations.names import unknown as unknown_name
from refresher.storage import records
from refresher.storage.demands import Demands
from refresher.storage.directories import Listing
from refresher.storage.publishing import Publisher
from refresher.storage.store import Store

__all__ = ["Inspection", "ListedGrant", "inspect", "list_grants", "read_grants", "server_of", "usable"]

ListedGrant = tuple[str, Grant | GrantFileError]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one grant, and the decision on it."""

    name: str
    record: Record | None
    decision: Decision | None = None
    """``None`` if there is no grant."""
    stale: bool
    """The token file is missing, or differs from the record."""
    needs_lock: bool
    """The grant must be published, rotated or recovered, a demand must be removed, or a warning is due."""
    unfinished: bool = False
    """An attempt left files."""
    demanded: frozenset[int] = frozenset()
    """The generations with a demand."""

    @property
    def server(self) -> str:
        """The origin of the authorization server; empty if there is no grant."""
        return server_of(self.record) if isinstance(self.record, Grant) else ""

    @property
    def generation(self) -> int:
        """The generation of the record; -1 if there is none."""
        return -1 if self.record is None else self.record.generation


def inspect(
    publisher: Publisher,
    name: str,
    *,
    listing: Listing,
    demands: Demands,
    force: bool = False,
    horizon: float = 0.0,
) -> Inspection:
    """Read the record and the token file of ``name``, and decide. Raises ``GrantFileError``."""
    unfinished = name in listing.unfinished
    record = records.load(publisher.directories, name).record
    stale = record is not None and publisher.is_stale(record, listing.sharing)
    if not isinstance(record, Grant):
        return Inspection(name=name, record=record, stale=stale, needs_lock=unfinished or stale, unfinished=unfinished)
    now = clocks.now()
    demanded = decided = False
    generations: frozenset[int] = frozenset()
    if name in demands.by_name or not demands.complete:
        current = publisher.current(record)
        generations = demands.of(name, current)
        demanded = publisher.is_demanded(record, generations, current)
        decided = any(each not in current for each in generations) or (demanded and record.dead)
    decision = policy.decide(
        record,
        now,
        demanded=demanded,
        force=force,
        horizon=horizon,
        renewed=is_renewed(record, sources_of(record, partial(records.load, publisher.directories))),
    )
    needs_lock = (
        unfinished
        or stale
        or decided
        or isinstance(decision, Rotate)
        or records.spill_of(record) is not None
        or policy.doubt_in_future(record, now)
        or ((warning := refresh_life.next_warning(record, now)) is not None and warning.seconds <= 0)
    )
    return Inspection(
        name=name,
        record=record,
        decision=decision,
        stale=stale,
        needs_lock=needs_lock,
        unfinished=unfinished,
        demanded=generations,
    )


def server_of(grant: Grant) -> str:
    """Return the origin of the authorization server of ``grant``; empty if its address is invalid."""
    try:
        return urls.parse_origin(grant.token_endpoint)
    except urls.InvalidURL:
        return ""


def list_grants(store: Store, names: Sequence[str] = (), *, moved: list[Moved] | None = None) -> list[ListedGrant]:
    """Return the grants ``names``, or all; the error in place of a grant if its record cannot be read.

    ``moved`` receives those that are in another store, or on their way to this one.

    Raises ``UnknownName`` and ``DirectoryError``.
    """
    existing = store.listing(names).names
    if unknown := [name for name in names if name not in existing]:
        raise unknown_name(store, unknown[0])
    grants: list[ListedGrant] = []
    for name, found in store.load_each(dict.fromkeys(names or existing)):
        grant = found if isinstance(found, GrantFileError) else found.record
        if isinstance(grant, Grant | GrantFileError):
            grants.append((name, grant))
        elif isinstance(grant, Moved) and moved is not None:
            moved.append(grant)
        elif names:
            raise gone(name, grant)
    return grants


def read_grants(store: Store, names: Collection[str]) -> dict[str, Grant | GrantFileError | None]:
    """Return each grant, the error if its record cannot be used, or ``None`` if there is none."""
    loaded = {
        name: found if isinstance(found, GrantFileError) else found.record for name, found in store.load_each(names)
    }
    return {
        name: usable(store, each) if isinstance(each, Grant | GrantFileError) else None for name, each in loaded.items()
    }


def usable(store: Store, grant: Grant | GrantFileError) -> Grant | GrantFileError:
    """Return ``grant``, or the error in its place if it is sealed with a key that is not here: it cannot be rotated."""
    if isinstance(grant, GrantFileError) or not store.directories.keys.is_certain:
        return grant
    try:
        require_key(grant)
    except KeyUnavailable as error:
        return error
    return grant
