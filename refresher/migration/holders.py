"""Which grants hold or have spent the refresh tokens that other programs keep."""

from collections.abc import Collection

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant
from refresher.storage import records
from refresher.storage.directories import Directories

__all__ = ["holders"]


def holders(directories: Directories, fingerprints: Collection[str]) -> dict[str, str]:
    """Return the names of the grants by fingerprint. A record that cannot be read counts as none."""
    found: dict[str, str] = {}
    for name in directories.listing().names if fingerprints else ():
        try:
            record = records.load(directories, name).record
        except (GrantFileError, OSError):
            continue
        if not isinstance(record, Grant):
            continue
        known = {*record.spent, *([] if record.refresh_token is None else [record.refresh_token.fingerprint()])}
        found |= dict.fromkeys(known & {*fingerprints}, name)
    return found
