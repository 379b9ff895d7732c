"""The errors for a name that has no grant."""

from itertools import islice

from refresher.common.errors import GrantFileError, UnknownName
from refresher.grants.record import Grant, Moved, Record
from refresher.storage.store import Store

__all__ = ["gone", "moved", "removed", "unknown"]


def unknown(store: Store, name: str) -> UnknownName:
    """Return the error for a name without a grant; it lists the names that have one."""
    known = islice((there for there in store.listing().names if not _is_gone(store, there)), 10)
    return UnknownName(f"there is no grant named {name!r} (known: {', '.join(known) or 'none yet'})")


def removed(name: str) -> UnknownName:
    """Return the error for a name whose grant was removed."""
    return UnknownName(f"{name} was removed; to log in again: 'refresher login {name} URL'")


def moved(record: Moved) -> UnknownName:
    """Return the error for a name whose grant is in another store, or on its way to this one."""
    if record.arriving is not None:
        return UnknownName(
            f"{record.name} is on its way from {record.place}, and inactive until the move is complete: repeat the "
            "'refresher store move' that was interrupted"
        )
    return UnknownName(f"{record.name} was moved to {record.place}: name that store with --store, or none for files")


def gone(name: str, record: Record | None) -> UnknownName:
    """Return the error for a name whose ``record`` is no grant."""
    return moved(record) if isinstance(record, Moved) else removed(name)


def _is_gone(store: Store, name: str) -> bool:
    try:
        record = store.load(name).record
    except GrantFileError:
        return False
    return record is not None and not isinstance(record, Grant)
