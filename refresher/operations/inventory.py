"""What ``status`` looks at: every grant as it lies on the disk, without a lock."""

from collections.abc import Sequence

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant
from refresher.storage import records
from refresher.storage.directories import Directories
from shim._token import is_name

__all__ = ["Entry", "overview"]

Entry = tuple[str, Grant | GrantFileError]


def overview(directories: Directories, names: Sequence[str]) -> list[Entry]:
    """Return each grant of ``names``, or of all, with what is wrong where its record cannot be read.

    Raises ``UnknownName`` and ``DirectoryError``.
    """
    there = [name for name in directories.listing().names if is_name(name)]
    if unknown := [name for name in names if name not in there]:
        raise records.unknown(directories, unknown[0])
    entries: list[Entry] = []
    for name in dict.fromkeys(names or there):
        try:
            record = records.load(directories, name).record
        except GrantFileError as error:
            entries.append((name, error))
            continue
        if isinstance(record, Grant):
            entries.append((name, record))
        elif names:
            raise records.removed(name)
    return entries
