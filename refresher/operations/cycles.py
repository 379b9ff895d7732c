"""The grants whose tokens a grant needs, and whether it would need its own token through them."""

from collections.abc import Callable
from typing import Final

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant, Stored
from refresher.storage.store import Store

__all__ = ["MAX_DEPTH", "cycle", "find_cycle", "sources_of"]

MAX_DEPTH: Final = 8
"""How many grants can feed each other in a row."""


def sources_of(grant: Grant, load: Callable[[str], Stored]) -> dict[str, Grant | None]:
    """Return the sources of ``grant``, read without their locks; ``None`` for one that cannot be read."""
    found: dict[str, Grant | None] = {}
    for name in () if grant.assertion is None else grant.assertion.sources:
        try:
            record = load(name).record
        except GrantFileError:
            record = None
        found[name] = record if isinstance(record, Grant) else None
    return found


def find_cycle(store: Store, grant: Grant) -> str | None:
    """Return a source of ``grant`` through which it would need itself, or too many others; ``None`` without one."""
    names = () if grant.assertion is None else grant.assertion.sources
    return next((name for name in names if _leads_to(store, name, {grant.name})), None)


def cycle(name: str, source: str) -> str:
    """Return the message that ``source`` cannot feed ``name``."""
    return f"{source} needs {name} itself, or more than {MAX_DEPTH} grants in a row: give another source"


def _leads_to(store: Store, name: str, above: set[str]) -> bool:
    if name in above or len(above) > MAX_DEPTH:
        return True
    try:
        record = store.load(name).record
    except GrantFileError:
        return False
    if not isinstance(record, Grant) or record.assertion is None:
        return False
    return any(_leads_to(store, source, {*above, name}) for source in record.assertion.sources)
