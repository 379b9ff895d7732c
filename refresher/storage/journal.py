"""What an attempt leaves on the disk while it is under way (DESIGN section 5, steps 4 to 6).

The order is the promise: space and intent are durable before the refresh token is spent, the answer is durable before
anybody sees it, and the record itself is replaced by one rename.
"""

import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from refresher.common.clocks import Moment
from refresher.common.errors import StorageError
from refresher.grants.record import UNREADABLE, Grant, Record, Stored, encode
from refresher.storage import files
from refresher.storage.directories import Directories

__all__ = ["LARGEST_RECORD", "Attempt", "Intent", "Mark", "read_intent", "write_record"]

# Larger than anything that an answer of 1 MiB can make of a record.
LARGEST_RECORD: Final = 8 * 1024 * 1024
_RESERVED: Final = 64 * 1024
_LARGEST_INTENT: Final = 64 * 1024
_ANSWERS_KEPT: Final = 16
_FRESH_KEPT: Final = 4
_LONGEST_PAUSE: Final = 10.0

log = logging.getLogger(__name__)


class Mark(Enum):
    """How far an attempt has come, as one byte behind its intent."""

    UNSENT = b"-"
    SENT = b"+"
    SPILLED = b"*"


class Intent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From what an attempt began, when, and where its answer may be if not in ``grants/``."""

    grant_id: str
    generation: int
    fingerprint: str
    begun_from: str
    at: Moment
    spill: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    checksum: str
    intent: msgspec.Raw


def read_intent(path: Path) -> tuple[Intent, Mark] | None:
    """Return the intent at ``path`` and how far its attempt has come; ``None`` where there is none.

    One that was never written is none: it is made durable before anything is sent. Raises ``OSError``, and
    ``ValueError`` for what cannot be read: no kill cuts a write this short, so it was whole once.
    """
    data = files.read(path, _LARGEST_INTENT)
    if data is None or not data.strip(b"\0"):
        return None
    line, _, mark = data.partition(b"\n")
    try:
        envelope = msgspec.json.decode(line, type=_Envelope)
        raw = bytes(envelope.intent)
        if envelope.version != 1 or hashlib.sha256(raw).hexdigest() != envelope.checksum:
            raise ValueError("its checksum or version does not fit")
        return msgspec.json.decode(raw, type=Intent), Mark(mark)
    except UNREADABLE:
        raise ValueError("it is not an intent") from None


class Attempt:
    """One attempt at the next record of ``name``, begun from ``stored``, under the lock of ``name``."""

    def __init__(self, directories: Directories, name: str, stored: Stored) -> None:
        self._directories = directories
        self._name = name
        self._stored = stored
        self._record: int | None = None
        self._intent: int | None = None
        self._mark_at = 0
        self._shouting: threading.Thread | None = None
        self._spill = directories.spilled(name, stored.checksum)

    def reserve(self, grant: Grant, at: Moment) -> None:
        """Take the space of the next record and declare what is about to be tried; durable on return.

        Raises ``StorageError``: then nothing was spent and nothing is left.
        """
        try:
            self._reserve(grant, at)
        except OSError as error:
            self.abandon()
            raise StorageError(
                f"nothing was spent: {self._directories.grants} refuses to store the next record: {error.strerror}"
            ) from None

    def _reserve(self, grant: Grant, at: Moment) -> None:
        path = self._directories.next(self._name)
        self._record = files.create(path)
        size = max(_RESERVED, 4 * len(encode(grant)[0]))
        files.write_all(self._record, bytes(size))
        os.fsync(self._record)
        intent = Intent(
            grant_id=grant.grant_id,
            generation=grant.generation,
            fingerprint="" if grant.refresh_token is None else grant.refresh_token.fingerprint(),
            begun_from=self._stored.checksum,
            at=at,
            spill=str(self._spill),
        )
        raw = msgspec.json.encode(intent)
        line = msgspec.json.encode(_Envelope(1, hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw))) + b"\n"
        self._mark_at = len(line)
        self._intent = files.create(self._directories.intent(self._name))
        files.write_all(self._intent, line + Mark.UNSENT.value)
        os.fsync(self._intent)
        files.sync_directory(self._directories.grants)

    def before_first_byte(self) -> None:
        """Note that a request is about to leave. Unsynced: a power loss counts as sent anyway."""
        self._mark(Mark.SENT)

    def _mark(self, mark: Mark) -> None:
        if self._intent is None:
            raise StorageError("an attempt was not declared before its request")
        files.write_all(self._intent, mark.value, self._mark_at)

    def persist(self, record: Record, *, until_saved: bool) -> None:
        """Make ``record`` the durable record of its name.

        ``until_saved``: it holds the only copy of a refresh token, so go on until some place has taken it, with the
        lock held and at the top of one's voice. Otherwise one more try in a fresh file, then ``StorageError``: the
        intent stays and tells the next start.
        """
        data, _ = encode(msgspec.structs.replace(record, begun_from=self._stored.checksum))
        if _succeeds(self._write_reserved, data):
            return self._finish()
        pause = 0.1
        while not _succeeds(self._write_fresh, data):
            if not until_saved:
                self.close()
                raise StorageError(f"{self._directories.grants} does not take the record of {self._name}")
            if _succeeds(self._write_spill, data):
                # The record stays as it was, and the intent says where its successor is: the next writer adopts it.
                with suppress(OSError):
                    self._mark(Mark.SPILLED)
                    if self._intent is not None:
                        os.fsync(self._intent)
                return self.close()
            self._shout()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._finish()

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep a raw answer that could not be read, where a person may find it; say where, or that it is lost."""
        kept = re.compile(re.escape(self._name) + r"\.answer\.(\d+)")
        record = self._stored.record
        since = record.doubt.since.wall if isinstance(record, Grant) and record.doubt is not None else math.inf
        path = self._directories.grants / f"{self._name}.answer.{int(at)}"
        try:
            names = [match for entry in self._directories.grants.iterdir() if (match := kept.fullmatch(entry.name))]
            # The first of a doubt matters most: it came when the token was spent. Later ones must not fill the disk.
            if sum(int(match[1]) >= since for match in names) >= _ANSWERS_KEPT:
                return "it is not kept: enough of its kind are"
            while files.is_there(path):
                path = path.with_name(f"{self._name}.answer.{int(path.name.rpartition('.')[2]) + 1}")
        except OSError:
            return "it could not be kept"
        if any(_succeeds(partial(write, path), answer) for write in (self._answer_fresh, self._answer_reserved)):
            return f"it is kept as {path.name} beside the record"
        spill = self._spill.parent / path.name
        if _succeeds(partial(self._spill_file, spill), answer):
            return f"it is kept as {spill}"
        return "it could not be kept"

    def _answer_fresh(self, path: Path, answer: bytes) -> None:
        try:
            files.durable_create(path, answer)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        files.sync_directory(self._directories.grants)

    def _answer_reserved(self, path: Path, answer: bytes) -> None:
        """Give the answer the space that was reserved for the next record: on a full disk it is all there is."""
        if self._record is None:
            raise OSError("no space was reserved")
        descriptor, self._record = self._record, None
        try:
            files.write_all(descriptor, answer)
            os.ftruncate(descriptor, len(answer))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._directories.next(self._name).rename(path)
        files.sync_directory(self._directories.grants)

    def abandon(self) -> None:
        """Take back a declaration from which nothing was sent and nothing came."""
        made = ((self._intent, self._directories.intent), (self._record, self._directories.next))
        for descriptor, path in made:
            if descriptor is not None:
                with suppress(OSError):
                    path(self._name).unlink()
        self.close()

    def _shout(self) -> None:
        # In a thread that may hang: a stalled log must not keep the only copy of a token from being saved.
        if self._shouting is not None and self._shouting.is_alive():
            return
        words = "%s: NOT SAVED YET: make room in %s or %s; this process holds the only copy of a new refresh token"
        places = (self._name, self._directories.grants, self._spill.parent)
        self._shouting = threading.Thread(target=log.critical, args=(words, *places), daemon=True)
        with suppress(RuntimeError):  # no thread to be had; saving goes on in silence
            self._shouting.start()

    def _write_reserved(self, data: bytes) -> None:
        if self._record is None:
            raise OSError("no space was reserved")
        path = self._directories.next(self._name)
        files.write_all(self._record, data)
        os.ftruncate(self._record, len(data))
        os.fsync(self._record)
        self._rename(path)

    def _write_fresh(self, data: bytes) -> None:
        # After a failed fsync the kernel forgets what it could not write: the old descriptor proves nothing any more.
        path = self._directories.fresh(self._name)
        try:
            files.durable_create(path, data)
            self._rename(path)
        except OSError:
            # The first ones may hold the only copy that reached the disk; more of them would only fill it.
            if len(self._directories.candidates(self._name)) > _FRESH_KEPT:
                path.unlink(missing_ok=True)
            raise

    def _write_spill(self, data: bytes) -> None:
        self._spill_file(self._spill, data)

    def _spill_file(self, path: Path, data: bytes) -> None:
        directory = path.parent
        files.make_private(directory)
        status = directory.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077 or not directory.is_dir():
            raise OSError(0, f"{directory} is not a private directory")
        if files.is_there(path):
            files.set_aside(path, time.time())  # somebody's only copy, perhaps
        try:
            # Under its name at once: a directory that refuses to rename shall not refuse to save.
            files.durable_create(path, data)
            files.sync_directory(directory)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _rename(self, path: Path) -> None:
        path.rename(self._directories.record(self._name))
        files.sync_directory(self._directories.grants)

    def _finish(self) -> None:
        """Clear what the attempt no longer needs; what cannot be cleared, the next writer clears."""
        self.close()
        with suppress(OSError):
            self._directories.intent(self._name).unlink()
        with suppress(OSError):
            for path in self._directories.candidates(self._name):
                path.unlink()
        with suppress(OSError):
            self._spill.unlink()

    def close(self) -> None:
        """Let go of the files; what is on the disk stays as it is."""
        for descriptor in (self._record, self._intent):
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)
        self._record = self._intent = None


def _succeeds(write: Callable[[bytes], None], data: bytes) -> bool:
    try:
        write(data)
    except Exception:  # noqa: BLE001  memory holds the only copy: nothing may keep the next place from being tried
        return False
    return True


def write_record(directories: Directories, name: str, stored: Stored, record: Record) -> Stored:
    """Replace ``stored`` by ``record`` durably, for writers that talk to no server; return what is stored now.

    Raises ``StorageError``; then the old record stands, or the new one where only its durability is unknown.
    """
    written = msgspec.structs.replace(record, begun_from=stored.checksum)
    data, checksum = encode(written)
    path = directories.fresh(name)
    try:
        try:
            files.durable_create(path, data)
            path.rename(directories.record(name))
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        files.sync_directory(directories.grants)
    except OSError as error:
        raise StorageError(f"cannot write {directories.record(name)}: {error.strerror}") from None
    return Stored(written, checksum)
