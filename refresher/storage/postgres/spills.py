"""Spills: new records that the database does not take, kept on this host. Each holds the only copy of a token.

``grants/NAME.ATTEMPT.spill``: a line that identifies the attempt, and the record. Any refresher of this host commits
it, and needs no lease for that. The record is bound to its line: ``begun_from`` is the hash of it.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from refresher.common import clocks
from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.grants.encoding import decode, encode, key_id_of, open_secrets
from refresher.grants.record import Grant
from refresher.storage import files
from refresher.storage.directories import Directories
from refresher.storage.postgres.settling import Sent
from refresher.storage.records import LARGEST
from shim._token import is_name

__all__ = [
    "INCOMPLETE",
    "Unstored",
    "find",
    "read",
    "remove",
    "save",
    "set_aside_if_cut_off",
    "set_aside_unreadable",
]

_FILE: Final = re.compile(r"(?P<name>.+)\.(?P<attempt>[0-9a-f]{32})\.(spill|new)")

INCOMPLETE: Final = ".new"
"""The suffix of a spill whose writing may have been cut off."""

_LONGEST_WRITE: Final = 60.0
_VERSION: Final = 2
"""Version 1 was before records could be sealed: its line is bound to nothing."""


class Unstored(NamedTuple):
    """A spill that cannot be stored now."""

    name: str
    problem: str
    grant_id: str | None = None
    generation: int | None = None
    """Of the refresh token that was sent; ``None`` if that cannot be read."""

    def concerns(self, grant_id: str | None, generation: int) -> bool:
        """Whether it may hold the successor of that generation: then nobody on this host may rotate the grant."""
        return self.grant_id is None or (self.grant_id, self.generation) == (grant_id, generation)


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    attempt: str
    grant_id: str
    generation: int
    fingerprint: str | None


def save(directories: Directories, sent: Sent, record: Grant) -> Path:
    """Save ``record``, the outcome of ``sent``, durably. Raises ``OSError``."""
    path = _path(directories, sent)
    header = _Header(
        version=_VERSION,
        attempt=sent.attempt.hex,
        grant_id=sent.grant_id,
        generation=sent.generation,
        fingerprint=sent.fingerprint,
    )
    line = msgspec.json.encode(header)
    bound = msgspec.structs.replace(record, begun_from=_hash(line))
    data = line + b"\n" + encode(bound, directories.keys)[0]
    new = path.with_suffix(INCOMPLETE)
    new.unlink(missing_ok=True)
    files.durable_create(new, data)
    new.rename(path)
    files.sync_directory(directories.grants)
    return path


def find(directories: Directories, name: str | None = None) -> Iterator[Path]:
    """Return the spills of ``name``, or of all names."""
    with suppress(OSError):
        for path in sorted(directories.grants.iterdir()):
            match = _FILE.fullmatch(path.name)
            if match is not None and is_name(match["name"]) and name in (None, match["name"]):
                yield path


def read(directories: Directories, path: Path) -> tuple[Sent, Grant]:
    """Return what was sent and the record that came of it. Raises ``GrantFileError`` and ``OSError``."""
    match = _FILE.fullmatch(path.name)
    found = files.read(path, LARGEST, private=True)
    if match is None or found is None:
        raise FileNotFoundError(path)
    line, _, data = found.data.partition(b"\n")
    damaged = GrantFileError(f"{path} is damaged: it may be the only copy of a token; keep it")
    try:
        header = msgspec.json.decode(line, type=_Header)
        attempt = uuid.UUID(hex=header.attempt)
    except (msgspec.MsgspecError, ValueError):
        raise damaged from None
    record = decode(data, match["name"], directories.keys).record
    if not isinstance(record, Grant) or header.version not in (1, _VERSION):
        raise GrantFileError(f"{path} is of another version of refresher: use the newer one")
    is_bound = record.begun_from == _hash(line) if header.version == _VERSION else key_id_of(data) is None
    if not is_bound:
        raise damaged
    return Sent(attempt, match["name"], header.grant_id, header.generation, header.fingerprint), record


def remove(directories: Directories, sent: Sent) -> None:
    """Remove the spill of an attempt that the database has taken."""
    with suppress(OSError):
        _path(directories, sent).unlink()


def set_aside_if_cut_off(path: Path) -> None:
    """Rename an incomplete spill, unless a process may still be writing it."""
    now = clocks.now().wall
    with suppress(OSError):  # its writer has completed it
        if now - path.stat().st_mtime > _LONGEST_WRITE:
            files.set_aside(path, now)


def set_aside_unreadable(directories: Directories, name: str) -> Iterator[tuple[GrantFileError, Path]]:
    """Rename the spills of ``name`` that cannot be opened; return why of each, and its path now.

    For a person who gives up the grant: otherwise they would block its name on this host for ever.
    """
    for path in find(directories, name):
        try:
            open_secrets(read(directories, path)[1])
        except GrantFileError as error:
            # An incomplete one may still be written.
            if path.suffix != INCOMPLETE or isinstance(error, KeyUnavailable):
                yield type(error)(f"{path}: {error}"), files.set_aside(path, clocks.now().wall)
        except (OSError, ValueError):
            continue


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _path(directories: Directories, sent: Sent) -> Path:
    return directories.grants / f"{sent.name}.{sent.attempt.hex}.spill"
