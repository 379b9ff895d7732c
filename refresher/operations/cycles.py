"""The grants whose tokens a grant needs, those that need its own, and whether it would need that itself."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant, Record, Stored
from refresher.storage.store import Store

__all__ = ["MAX_DEPTH", "fed_by", "find_cycle", "find_cycle_above", "sources_of"]

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
    """Return the grants that need the token of ``name``, also through others; the nearest first.

    None in a store that takes long to search.
    """
    return _fed_by(_all_sources(store), name)


def find_cycle(store: Store, grant: Grant) -> str | None:
    """Return why ``grant`` cannot have its sources: it would need itself, or too many others; ``None`` if it can."""

    def sources(name: str) -> tuple[str, ...]:
        with suppress(GrantFileError):
            return _sources(grant if name == grant.name else store.load(name).record)
        return ()

    return _find_cycle(grant.name, sources)


def find_cycle_above(store: Store, grant: Grant) -> str | None:
    """Return why a grant that needs the token of ``grant`` could not have it any more; ``None`` if each can."""
    if not _sources(grant):
        return None  # it makes no row longer
    sources = _all_sources(store) | {grant.name: _sources(grant)}
    problems = (_find_cycle(name, lambda name: sources.get(name, ())) for name in _fed_by(sources, grant.name))
    return next(filter(None, problems), None)


def _all_sources(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the sources of each grant; nothing in a store that takes long to search."""
    listed = store.listing().names
    found = store.load_each(listed) if len(listed) <= _MOST_SEARCHED else ()
    return {name: _sources(stored.record) for name, stored in found if isinstance(stored, Stored)}


def _fed_by(sources: Mapping[str, tuple[str, ...]], name: str) -> list[str]:
    feeds: dict[str, list[str]] = {}
    for each, needed in sources.items():
        for source in needed:
            feeds.setdefault(source, []).append(each)
    found, row = dict.fromkeys((name,)), [name]
    for source in row:  # it grows
        new = [each for each in feeds.get(source, ()) if each not in found]
        found |= dict.fromkeys(new)
        row += new
    return row[1:]


def _find_cycle(name: str, sources: Callable[[str], tuple[str, ...]], above: tuple[str, ...] = ()) -> str | None:
    if name in above:
        between = above[above.index(name) + 1 :]
        through = f" through {', '.join(between)}" if between else ""
        return f"{name} would need its own token{through}: give another source"
    if len(above) > MAX_DEPTH:
        return f"{above[0]} would need the tokens of more than {MAX_DEPTH} grants in a row: give another source"
    problems = (_find_cycle(source, sources, (*above, name)) for source in sources(name))
    return next(filter(None, problems), None)


def _sources(record: Record | None) -> tuple[str, ...]:
    return record.assertion.sources if isinstance(record, Grant) and record.assertion is not None else ()
