"""What an earlier attempt left behind, and what becomes of it (DESIGN section 5, step 2).

Every writer of a grant calls ``resolve`` under the lock before anything else. Each step can be cut short by a crash and
is right when it is done again.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

from refresher import consequence, files, store
from refresher.attempt import LARGEST_RECORD, Intent, read_intent, write_record
from refresher.clocks import Moment
from refresher.directories import Directories
from refresher.errors import GrantFileError, StorageError
from refresher.grant import Grant, Stored, decode

__all__ = ["resolve", "set_aside", "whole"]

log = logging.getLogger(__name__)

_KILLED = "an attempt was cut off after its request may have been sent, before its answer was saved"


def resolve(directories: Directories, name: str, now: Moment) -> Stored:
    """Settle what is left of earlier attempts; return the record as it then stands.

    Raises ``GrantFileError`` for a record that cannot be read (nothing is touched then) and ``StorageError`` where
    the disk refuses.
    """
    stored = store.load(directories, name)
    try:
        if not _anything(directories, name):
            return stored
        return _resolve(directories, name, stored, now)
    except OSError as error:
        raise StorageError(f"cannot tidy up after an earlier attempt at {name}: {error.strerror}") from None


def set_aside(path: Path, now: float) -> Path:
    """Move a file out of the way, never over another one; return its new path. Raises ``OSError``."""
    count = int(now)
    while os.path.lexists(aside := path.with_name(f"{path.name}.aside.{count}")):
        count += 1
    return path.rename(aside)


def _anything(directories: Directories, name: str) -> bool:
    return files.is_there(directories.intent(name)) or bool(directories.candidates(name))


def _resolve(directories: Directories, name: str, stored: Stored, now: Moment) -> Stored:
    intent, sent = _intent(directories, name, now)
    candidates = directories.candidates(name)
    if intent is not None and files.is_there(Path(intent.spill)):
        candidates.append(Path(intent.spill))
    for path in candidates:
        successor = whole(path, name)
        if successor is not None and successor.record is not None and successor.record.begun_from == stored.checksum:
            # Written again and not renamed: nobody knows whether its bytes ever reached the disk.
            write_record(directories, name, stored, successor.record)
            log.warning("%s: adopted what an earlier attempt had saved in %s", name, path)
            stored = store.load(directories, name)
            break
    for path in candidates:
        _clear(path, name, stored, now)
    if intent is not None:
        stored = _settle(directories, name, stored, intent, sent=sent, now=now)
    return stored


def _intent(directories: Directories, name: str, now: Moment) -> tuple[Intent | None, bool]:
    path = directories.intent(name)
    try:
        found = read_intent(path)
    except ValueError as error:
        log.warning("%s: %s: %s; it is now %s", name, path, error, set_aside(path, now.wall))
        return None, False
    if found is None:
        # Cut off while it was written, and so before anything was sent.
        with suppress(FileNotFoundError):
            path.unlink()
        return None, False
    return found


def whole(path: Path, name: str) -> Stored | None:
    """Return the record in a leftover file, ``None`` where it is not whole. Raises ``OSError``."""
    try:
        data = files.read(path, LARGEST_RECORD)
        return None if data is None else decode(data, name)
    except (GrantFileError, ValueError):
        return None


def _clear(path: Path, name: str, stored: Stored, now: Moment) -> None:
    """Remove a blank reservation or a copy of what is stored; set anything else aside: it may be an only copy."""
    try:
        data = files.read(path, LARGEST_RECORD)
    except ValueError:
        data = b"unreadable"
    copy = whole(path, name)
    # Cut off while zeros were being reserved, or adopted a moment ago: nothing is lost with it.
    if data is None or not data.strip(b"\0") or (copy is not None and copy.checksum == stored.checksum):
        path.unlink(missing_ok=True)
        return
    log.warning("%s: %s fits nothing that is known; it is now %s", name, path, set_aside(path, now.wall))


def _settle(directories: Directories, name: str, stored: Stored, intent: Intent, *, sent: bool, now: Moment) -> Stored:
    record = stored.record
    path = directories.intent(name)
    matches = stored.checksum == intent.begun_from
    moved_past = record is not None and (
        record.begun_from == intent.begun_from or record.generation > intent.generation
    )
    if not matches and not moved_past:
        log.warning("%s: an intent fits no record that is known; it is now %s", name, set_aside(path, now.wall))
        return stored
    if matches and isinstance(record, Grant) and (sent or not intent.at.same_boot(now)):
        # In another boot the mark proves nothing: it was never synced.
        doubtful = consequence.doubted(record, _KILLED, since=intent.at, now=now)
        write_record(directories, name, stored, doubtful)
        stored = store.load(directories, name)
    path.unlink(missing_ok=True)
    return stored
