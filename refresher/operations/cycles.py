"""The grants whose tokens a grant needs, those that need its own, and whether it would need that itself."""

from collections.abc import Callable
from typing import Final

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant, Record, Stored
from refresher.storage.store import Store

__all__ = ["MAX_DEPTH", "cycle", "fed_by", "find_cycle", "sources_of"]

MAX_DEPTH: Final = 8
"""How many grants can feed each other in a row."""

_MOST_SEARCHED: Final = 10_000


def sources_of(grant: Grant, load: Callable[[str], Stored]) -> dict[str, Grant | None]:
    """Return the sources of ``grant``, read without their locks; ``None`` for one that cannot be read."""
    found: dict[str, Grant | None] = {}
    for name in _sources(grant):
        try:
            record = load(name).record
        except GrantFileError:
            record = None
        found[name] = record if isinstance(record, Grant) else None
    return found


def fed_by(store: Store, name: str) -> list[str]:
    """Return the grants that need the token of ``name``; none in a store that takes long to search."""
    listed = store.listing().names
    found = store.load_each(listed) if len(listed) <= _MOST_SEARCHED else ()
    return [each for each, stored in found if isinstance(stored, Stored) and name in _sources(stored.record)]


def _sources(record: Record | None) -> tuple[str, ...]:
    return record.assertion.sources if isinstance(record, Grant) and record.assertion is not None else ()


def find_cycle(store: Store, grant: Grant) -> str | None:
    """Return a source of ``grant`` through which it would need itself, or too many others; ``None`` without one."""
    return _find_cycle(store, grant, {grant.name})


def _find_cycle(store: Store, grant: Grant, above: set[str]) -> str | None:
    for name, source in sources_of(grant, store.load).items():
        if name in above or len(above) > MAX_DEPTH:
            return name
        if source is not None and _find_cycle(store, source, {*above, name}) is not None:
            return name
    return None


def cycle(name: str, source: str) -> str:
    """Return the message that ``source`` cannot feed ``name``."""
    return f"{source} needs {name} itself, or more than {MAX_DEPTH} grants in a row: give another source"
