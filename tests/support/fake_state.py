"""State directories made by a test, with files that no process leaves."""

from pathlib import Path

import msgspec

from refresher.grants.encoding import decode, encode
from refresher.grants.record import Grant, Stored
from refresher.storage.directories import Directories

__all__ = ["directories", "put"]


def directories(root: Path) -> Directories:
    """Create the directories below ``root`` and return them."""
    made = Directories(
        state=root / "state", tokens=root / "state/tokens", demands=root / "state/demands", spill=root / "spill"
    )
    made.prepare()
    return made


def put(path: Path, grant: Grant, begun_from: str = "") -> Stored:
    """Write ``grant`` to ``path`` as if begun from a record with that checksum; return it as stored."""
    data, _ = encode(msgspec.structs.replace(grant, begun_from=begun_from))
    path.write_bytes(data)
    path.chmod(0o600)
    return decode(data, grant.name)
