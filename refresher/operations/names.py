"""The errors for a name that has no grant."""

from refresher.common.errors import GrantFileError, UnknownName
from refresher.grants.record import Tombstone
from refresher.storage.store import Store

__all__ = ["removed", "unknown"]


def unknown(store: Store, name: str) -> UnknownName:
    """Return the error for a name without a grant; it lists the names that have one."""
    known = [there for there in store.listing().names if not _is_removed(store, there)]
    return UnknownName(f"there is no grant named {name!r} (known: {', '.join(known[:10]) or 'none yet'})")


def removed(name: str) -> UnknownName:
    """Return the error for a name whose grant was removed."""
    return UnknownName(f"{name} was removed; to log in again: 'refresher login {name} URL'")


def _is_removed(store: Store, name: str) -> bool:
    try:
        return isinstance(store.load(name).record, Tombstone)
    except GrantFileError:
        return False
