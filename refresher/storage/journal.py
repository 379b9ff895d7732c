"""The journal of an attempt: its files, from before the refresh token is spent until the end.

The order is what makes a rotation safe: the space for the answer and the intent are durable before the refresh token is
spent, the answer is durable before anybody sees it, and one rename replaces the record. ``recovery`` processes
each file after a crash.

- ``NAME.next``: 64 KiB or more, reserved for the next record. On a full disk the attempt fails here, before it sends.
- ``NAME.intent``: the record that the attempt begins from, the time, and the place of a spill. One byte at its end, the
  mark, says how far the attempt came: ``-`` unsent, ``+`` sent, ``*`` spilled.
- ``NAME.next.N``: the next record again, if writing the reserved one failed.
- a spill: the next record in another directory, if ``grants/`` takes none.
- ``NAME.answer.TIME``: an answer that could not be read. A person may find tokens in it.
"""

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError, StorageError
from refresher.grants.encoding import DECODE_ERRORS, encode, encode_kept, unwrap, wrap
from refresher.grants.record import Grant, Stored
from refresher.storage import files
from refresher.storage.directories import Directories

__all__ = ["Attempt", "Intent", "Mark", "read_intent"]

_RESERVED: Final = 64 * 1024
_LARGEST_INTENT: Final = 64 * 1024
_ANSWERS_KEPT: Final = 16
_FRESH_KEPT: Final = 3
_LONGEST_PAUSE: Final = 10.0

log = logging.getLogger(__name__)


class Mark(Enum):
    """How far an attempt came: one byte at the end of its intent."""

    UNSENT = b"-"
    SENT = b"+"
    SPILLED = b"*"


class Intent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an attempt declares before it sends; the field names are those on the disk."""

    grant_id: str
    generation: int
    fingerprint: str
    begun_from: str
    at: Moment
    spill: str


def read_intent(path: Path) -> tuple[Intent, Mark] | None:
    """Return the intent at ``path`` and its mark; ``None`` if there is none, or only the blank space of one.

    Raises ``OSError``, and ``ValueError`` for a damaged one: an intent is durable before anything is sent, so it was
    whole once.
    """
    found = files.read(path, _LARGEST_INTENT)
    if found is None or not found.data.strip(b"\0"):
        return None
    line, _, mark = found.data.partition(b"\n")
    try:
        return msgspec.json.decode(unwrap("intent", line)[0], type=Intent), Mark(mark)
    except (GrantFileError, *DECODE_ERRORS):
        raise ValueError("it is not an intent") from None


class Attempt:
    """One attempt at the next record of ``name``, which begins from ``stored``; the caller holds the lock."""

    def __init__(
        self, directories: Directories, name: str, stored: Stored, *, on_sent: Callable[[], None] = lambda: None
    ) -> None:
        self._directories = directories
        self._name = name
        self._stored = stored
        self._on_sent = on_sent
        self._record: int | None = None
        self._intent: int | None = None
        self._mark_at = 0
        self._fresh: list[Path] = []
        self._warning: threading.Thread | None = None
        self._spill = directories.spilled(name, stored.checksum)

    def reserve(self, grant: Grant, at: Moment) -> None:
        """Reserve the space of the next record and declare the intent; both are durable on return.

        Raises ``StorageError`` and ``KeyUnavailable``: then nothing is spent and no file is left.
        """
        intent = Intent(
            grant_id=grant.grant_id,
            generation=grant.generation,
            fingerprint=grant.fingerprint() or "",
            begun_from=self._stored.checksum,
            at=at,
            spill=str(self._spill),
        )
        # Opens the grant, and loads the key of the next record: after the request nothing of this may fail.
        size = len(encode(grant, self._directories.keys)[0])
        line, _ = wrap("intent", msgspec.json.encode(intent))
        self._mark_at = len(line)
        try:
            self._record = files.create(self._directories.next(self._name))
            files.write_all(self._record, bytes(max(_RESERVED, 4 * size)))
            os.fsync(self._record)
            self._intent = files.create(self._directories.intent(self._name))
            files.write_all(self._intent, line + Mark.UNSENT.value)
            os.fsync(self._intent)
            files.sync_directory(self._directories.grants)
        except OSError as error:
            self.abandon()
            raise StorageError(
                f"nothing was spent: {self._directories.grants} refuses to store the next record: {error.strerror}"
            ) from None

    def before_first_byte(self) -> None:
        """Mark the intent as sent. Without a sync: after a power loss every intent counts as sent."""
        self._mark(Mark.SENT)
        self._on_sent()

    def _mark(self, mark: Mark) -> None:
        if self._intent is None:
            raise StorageError("an attempt was not declared before its request")
        files.write_all(self._intent, mark.value, self._mark_at)

    def persist(self, record: Grant, *, until_saved: bool) -> Grant:
        """Make ``record`` the durable record of its name, and return it.

        ``until_saved``: the record holds the only copy of a refresh token. Then this tries ``grants/`` and the spill
        directory again and again until one of them takes it, with the lock held, and logs that it is not saved.
        Otherwise it tries one fresh file and raises ``StorageError``; the intent stays for the next recovery.
        """
        data, _ = encode(msgspec.structs.replace(record, begun_from=self._stored.checksum), self._directories.keys)
        saved = _succeeds(self._fill_reserved, self._directories.record(self._name), data)
        pause = 0.1
        while not saved and not _succeeds(self._write_fresh, data):
            if not until_saved:
                self.close()
                raise StorageError(f"{self._directories.grants} does not take the record of {self._name}")
            if _succeeds(self._spill_file, self._spill, data):
                # The record stays as it is. The intent says where its successor is, and the next writer adopts it.
                with suppress(OSError):
                    self._mark(Mark.SPILLED)
                    if self._intent is not None:
                        os.fsync(self._intent)
                self.close()
                return record
            self._warn_not_saved()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._finish()
        return record

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep an answer that could not be read; return a sentence that says where it is, or that it is lost."""
        kept = re.compile(re.escape(self._name) + r"\.answer\.(\d+)")
        record = self._stored.record
        since = record.doubt.since.wall if isinstance(record, Grant) and record.doubt is not None else math.inf
        try:
            names = [match for entry in self._directories.grants.iterdir() if (match := kept.fullmatch(entry.name))]
            # The first answer of a doubt matters most: it came when the token was spent. More must not fill the disk.
            if sum(int(match[1]) >= since for match in names) >= _ANSWERS_KEPT:
                return "it is not kept: there are enough such answers"
        except OSError:
            return "it could not be kept"
        answer = encode_kept(self._name, answer, self._directories.keys)
        path = files.unused(self._directories.grants / f"{self._name}.answer", int(at))
        # On a full disk there is no other space than that of the next record.
        if _succeeds(_create, path, answer) or _succeeds(self._fill_reserved, path, answer):
            return f"it is kept as {path.name} beside the record"
        spill = self._spill.parent / path.name
        if _succeeds(self._spill_file, spill, answer):
            return f"it is kept as {spill}"
        return "it could not be kept"

    def abandon(self) -> None:
        """Remove the intent and the reservation of an attempt that sent nothing."""
        intent, reserved = self._directories.intent(self._name), self._directories.next(self._name)
        for descriptor, path in ((self._intent, intent), (self._record, reserved)):
            if descriptor is not None:
                with suppress(OSError):
                    path.unlink()
        self.close()

    def _warn_not_saved(self) -> None:
        # In a thread of its own: a log that blocks must not prevent the saving of the only copy of a token.
        if self._warning is not None and self._warning.is_alive():
            return
        message = "%s: NOT SAVED YET: make room in %s or %s; this process holds the only copy of a new refresh token"
        places = (self._name, self._directories.grants, self._spill.parent)
        self._warning = threading.Thread(target=log.critical, args=(message, *places), daemon=True)
        with suppress(RuntimeError):  # the system has no thread left; saving goes on without a log line
            self._warning.start()

    def _fill_reserved(self, target: Path, data: bytes) -> None:
        if self._record is None:
            raise OSError("no space was reserved")
        descriptor, self._record = self._record, None
        try:
            files.write_all(descriptor, data)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._rename(self._directories.next(self._name), target)

    def _write_fresh(self, data: bytes) -> None:
        # After a failed fsync the kernel drops the pages that it could not write, so the old descriptor proves nothing.
        path = self._directories.fresh(self._name)
        try:
            files.durable_create(path, data)
            self._rename(path, self._directories.record(self._name))
        except OSError:
            # The first ones may hold the only copy that reached the disk. More of them only fill it.
            if len(self._fresh) >= _FRESH_KEPT:
                path.unlink(missing_ok=True)
            elif os.path.lexists(path):
                self._fresh.append(path)
            raise

    def _spill_file(self, path: Path, data: bytes) -> None:
        files.make_directories(path.parent)
        if not files.is_private(path.parent):
            raise OSError(f"{path.parent} is not a private directory")
        if os.path.lexists(path):
            files.set_aside(path, time.time())  # perhaps the only copy of another token
        _create(path, data)

    def _rename(self, path: Path, target: Path) -> None:
        path.rename(target)
        files.sync_directory(self._directories.grants)

    def _finish(self) -> None:
        """Remove the files of the attempt; recovery removes what cannot be removed now."""
        self.close()
        with suppress(OSError):
            self._directories.intent(self._name).unlink()
        with suppress(OSError):
            # The last one first, because recovery looks for the first ones.
            for path in (*reversed(self._fresh), self._directories.next(self._name)):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self._spill.unlink()

    def close(self) -> None:
        """Close the files; what is on the disk stays as it is."""
        for descriptor in (self._record, self._intent):
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)
        self._record = self._intent = None


def _create(path: Path, data: bytes) -> None:
    """Create a durable file under its final name, because its directory may refuse a rename; or leave none.

    If only the sync of the directory fails, the file stays: it is complete.
    """
    try:
        files.durable_create(path, data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    files.sync_directory(path.parent)


def _succeeds(write: Callable[..., None], *arguments: object) -> bool:
    try:
        write(*arguments)
    except Exception:  # noqa: BLE001  memory holds the only copy, so the next place is tried after any error
        return False
    return True
