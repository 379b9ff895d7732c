"""The rows of ``status --watch``: one for each grant, read again when its record changes."""

import os
import time
from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from refresher.common.errors import GrantFileError
from refresher.grants import accounts, policy
from refresher.grants.forecast import End, first_hard_end
from refresher.grants.record import Grant
from refresher.grants.token_file import state_of
from refresher.operations import certificates
from refresher.operations import grant_report as report
from refresher.operations.inspection import read_grants
from refresher.storage.file_store import FileStore
from refresher.storage.store import Store
from shim._token import is_name

__all__ = ["Concern", "LiveRows", "Row", "concern_of"]

_SETTLED: Final = 2.0
_FULL_INTERVAL: Final = 30.0
_FULL_SHARE: Final = 0.01


class Concern(IntEnum):
    """The condition of a grant in a word, the most serious first."""

    NEEDS_PERSON = 0
    FAILING = 1
    OVERDUE = 2
    WAITING = 3
    """It has no valid token yet, or none any more."""
    ENDING = 4
    """It works, and ends within 7 days unless a person acts."""
    FRESH = 5


class Row(NamedTuple):
    """What is shown of one grant; it changes only with the record. Texts can come from servers."""

    name: str
    grant: Grant | None
    """``None`` if the record cannot be read."""
    state: str
    issued_at: float | None
    """``None`` if there is no access token."""
    expires_at: float | None
    """``None`` if it is unknown."""
    next_at: float | None
    error: str
    end: End | None
    """The first end that needs a person."""
    account: str
    server: str


class LiveRows:
    """The rows of the grants ``names``, or of all."""

    def __init__(self, store: Store, names: Collection[str] = ()) -> None:
        self.by_name: Final[dict[str, Row]] = {}
        self._store: Final = store
        self._is_files: Final = isinstance(store, FileStore)
        self._names: Final = frozenset(names)
        self._stamps: Mapping[str, int] = {}
        self._modified = -1
        self._full_at = float("-inf")

    def refresh(self) -> bool:
        """Read the records that have changed. Return whether there were any. Raises ``StorageError``."""
        modified = time.time_ns()
        if self._is_files:
            try:
                modified = os.stat(self._store.directories.grants).st_mtime_ns  # noqa: PTH116  each second
            except OSError:
                modified = 0
        # A record is replaced by a rename, which changes the directory. Only a change in place does not.
        settled = modified < time.time_ns() - _SETTLED * 1e9
        if modified == self._modified and settled and time.monotonic() < self._full_at:
            return False
        started = time.thread_time()
        found = self._store.stamps()
        if self._names:
            found = {name: stamp for name, stamp in found.items() if name in self._names}
        changed = [name for name, stamp in found.items() if self._stamps.get(name) != stamp and is_name(name)]
        gone = self._stamps.keys() - found.keys()
        self._stamps, self._modified = found, modified
        spent = time.thread_time() - started
        self._full_at = time.monotonic() + max(_FULL_INTERVAL, spent / _FULL_SHARE)
        loaded = read_grants(self._store, changed)
        for name in gone | {name for name, record in loaded.items() if record is None}:
            self.by_name.pop(name, None)
        with certificates.reading(record for record in loaded.values() if isinstance(record, Grant)):
            self.by_name.update((name, _row(name, record)) for name, record in loaded.items() if record is not None)
        return bool(changed or gone)


def concern_of(row: Row, late: bool | None, now: float) -> Concern:
    """Return the condition of ``row`` at ``now``; ``late``: whether a run should have come, if that is known."""
    if row.grant is None or row.state == "reauthorization_required":
        return Concern.NEEDS_PERSON
    if row.state != "active":
        return Concern.FAILING
    if report.is_overdue(row.grant, late):
        return Concern.OVERDUE
    if row.issued_at is None or (row.expires_at is not None and row.expires_at <= now):
        return Concern.WAITING
    return Concern.ENDING if row.end is not None and report.is_soon(row.end) else Concern.FRESH


def _row(name: str, record: Grant | GrantFileError) -> Row:
    if isinstance(record, GrantFileError):
        return Row(name, None, report.INVALID, None, None, None, str(record), None, "", "")
    error = report.last_error(record)
    return Row(
        name=name,
        grant=record,
        state=state_of(record),
        issued_at=record.issued_at if policy.has_access_token(record) else None,
        expires_at=record.expires_at,
        next_at=report.next_rotation_at(record),
        error="" if error is None else error.description,
        end=first_hard_end(report.ends_of(record)),
        account="" if record.account is None else accounts.shown(record.account),
        server=_host(record.server_url or record.issuer or record.token_endpoint),
    )


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
