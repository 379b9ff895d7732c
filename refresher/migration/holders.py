"""Which grants hold or have spent the refresh tokens that other programs keep."""

from collections.abc import Collection

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant
from refresher.storage.store import Store

__all__ = ["holders"]


def holders(store: Store, fingerprints: Collection[str]) -> dict[str, str]:
    """Return the names of the grants by fingerprint. A record that cannot be read counts as none."""
    found: dict[str, str] = {}
    for name in store.listing().names if fingerprints else ():
        try:
            record = store.load(name).record
        except (GrantFileError, OSError):
            continue
        if not isinstance(record, Grant):
            continue
        known = {*record.spent, record.fingerprint()}
        found |= dict.fromkeys({each for each in known if each is not None and each in fingerprints}, name)
    return found
