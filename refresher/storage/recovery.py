"""What an earlier attempt left behind, and what becomes of it (DESIGN section 5, step 2).

Every writer of a grant calls ``resolve`` under the lock before anything else. Each step can be cut short by a crash and
is right when it is done again.
"""

import logging
from contextlib import suppress
from pathlib import Path

import msgspec

from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError, StorageError
from refresher.grants import transition
from refresher.grants.record import NOTHING, Doubt, Grant, Record, Stored, decode
from refresher.storage import files, records
from refresher.storage.directories import Directories
from refresher.storage.journal import LARGEST_RECORD, Intent, Mark, read_intent, write_record

__all__ = ["resolve", "whole"]

log = logging.getLogger(__name__)

_KILLED = "an attempt was cut off after its request may have been sent, before its answer was saved"


def resolve(
    directories: Directories, name: str, now: Moment, *, damaged: bool = False, giving_up: bool = False
) -> Stored:
    """Settle what is left of earlier attempts; return the record as it then stands.

    ``damaged``: the record that is there counts for nothing, and is kept elsewhere. ``giving_up``: a person replaces or
    removes the grant, so an answer that is out of reach is needed no more. Raises ``GrantFileError`` for a record that
    cannot be read (nothing is touched then) and ``StorageError`` where the disk refuses.
    """
    stored = Stored(None, NOTHING) if damaged else records.load(directories, name)
    try:
        stored = _come_back(directories, name, stored, now)
        candidates = directories.candidates(name)
        if not candidates and not files.is_there(directories.intent(name)):
            return stored
        return _resolve(directories, name, stored, candidates, now, giving_up=giving_up)
    except OSError as error:
        raise StorageError(f"cannot tidy up after an earlier attempt at {name}: {error.strerror}") from None


def _come_back(directories: Directories, name: str, stored: Stored, now: Moment) -> Stored:
    """Adopt a spill whose file system was mounted late, where it still fits."""
    record = stored.record
    if not isinstance(record, Grant) or record.doubt is None or (path := records.spill_of(record)) is None:
        return stored
    found = whole(path, name)
    successor = None if found is None else found.record
    if (
        isinstance(successor, Grant)
        and successor.begun_from == record.doubt.begun_from
        and successor.grant_id == record.grant_id
        and successor.generation > record.generation
    ):
        stored = _adopt(directories, name, stored, path, successor)
        path.unlink()
    else:
        _clear(path, name, stored, now)
    return stored


def _resolve(
    directories: Directories, name: str, stored: Stored, candidates: list[Path], now: Moment, *, giving_up: bool
) -> Stored:
    # What looks stored may be so in memory alone, where a kill or an error came between its rename and this.
    files.sync_directory(directories.grants)
    begun = _intent(directories, name)
    # A damaged intent does not say any more where its answer may be.
    spill = directories.spilled(name, stored.checksum) if begun.intent is None else Path(begun.intent.spill)
    if files.is_there(spill):
        candidates.append(spill)
    answer = _answer(name, stored, candidates)
    out_of_reach = answer is None and begun.mark is Mark.SPILLED and begun.concerns(stored)
    if out_of_reach and not giving_up and begun.intent is not None:
        raise StorageError(
            f"the new record of {name} was saved in {begun.intent.spill}, which is not there: bring it back (a file "
            f"system that is not mounted?), or give it up: 'refresher login {name}'"
        )
    if begun.damaged:
        # Before an answer is adopted: beside its own successor it would put that in doubt.
        stored = _give_up(directories, name, stored, now, answered=answer is not None)
    if answer is not None:
        stored = _adopt(directories, name, stored, *answer)
    elif (record := stored.record) is not None and any(_is_copy(path, name, stored) for path in candidates):
        # It was saved twice because something failed: the copy goes only once the record is sure to stay.
        stored = write_record(directories, name, Stored(None, record.begun_from), record)
    for path in candidates:
        _clear(path, name, stored, now)
    if begun.intent is not None:
        return _settle(directories, name, stored, begun, now)
    return stored


def _answer(name: str, stored: Stored, candidates: list[Path]) -> tuple[Path, Record] | None:
    """Return the first of ``candidates`` that is the successor of ``stored``, and where it is."""
    for path in candidates:
        successor = whole(path, name)
        if successor is not None and successor.record is not None and successor.record.begun_from == stored.checksum:
            return path, successor.record
    return None


def _adopt(directories: Directories, name: str, stored: Stored, path: Path, successor: Record) -> Stored:
    # Written again and not renamed: nobody knows whether its bytes ever reached the disk.
    adopted = write_record(directories, name, stored, successor)
    log.warning("%s: adopted what an earlier attempt had saved in %s", name, path)
    return adopted


class _Begun(msgspec.Struct, frozen=True):
    """What an intent tells: itself and how far it came, or only that there was one."""

    intent: Intent | None = None
    mark: Mark | None = None
    damaged: bool = False

    def moved_past(self, stored: Stored) -> bool:
        """Whether the record has settled this attempt already."""
        record, intent = stored.record, self.intent
        return (
            record is not None
            and intent is not None
            and (record.begun_from == intent.begun_from or record.generation > intent.generation)
        )

    def concerns(self, stored: Stored) -> bool:
        """Whether the attempt began from what is stored, or would at least have spent its refresh token."""
        record, intent = stored.record, self.intent
        if intent is None or self.moved_past(stored):
            return False
        if stored.checksum == intent.begun_from:
            return True
        token = record.refresh_token if isinstance(record, Grant) else None
        return token is not None and token.fingerprint() == intent.fingerprint


def _intent(directories: Directories, name: str) -> _Begun:
    path = directories.intent(name)
    try:
        found = read_intent(path)
    except ValueError:
        return _Begun(damaged=True)
    if found is None:
        # Cut off before it was written, and so before anything was sent.
        with suppress(FileNotFoundError):
            path.unlink()
        return _Begun()
    return _Begun(*found)


def whole(path: Path, name: str) -> Stored | None:
    """Return the record in a leftover file, ``None`` where it is not whole. Raises ``OSError``."""
    try:
        data = files.read(path, LARGEST_RECORD)
        # Cut off before it was cut to its length, a record is followed by the zeros of its reservation.
        return None if data is None else decode(data.rstrip(b"\0"), name)
    except (GrantFileError, ValueError):
        return None


def _is_copy(path: Path, name: str, stored: Stored) -> bool:
    copy = whole(path, name)
    return copy is not None and copy.checksum == stored.checksum


def _clear(path: Path, name: str, stored: Stored, now: Moment) -> None:
    """Remove a blank reservation or a copy of what is stored; set anything else aside: it may be an only copy."""
    try:
        data = files.read(path, LARGEST_RECORD)
    except ValueError:
        data = b"unreadable"
    # Cut off while zeros were being reserved, or adopted a moment ago: nothing is lost with it.
    if data is None or not data.strip(b"\0") or _is_copy(path, name, stored):
        path.unlink(missing_ok=True)
        return
    log.warning("%s: %s fits nothing that is known; it is now %s", name, path, files.set_aside(path, now.wall))


def _give_up(directories: Directories, name: str, stored: Stored, now: Moment, *, answered: bool) -> Stored:
    """Settle an attempt of which nothing is known any more but that it was declared."""
    in_doubt = isinstance(stored.record, Grant) and stored.record.doubt is not None
    if not answered and not in_doubt:
        # Its intent was whole once, so a request may have left; when, it does not say.
        stored = _doubt(directories, name, stored, Doubt(since=now, replay_over=True), now)
    path = directories.intent(name)
    log.warning("%s: the intent %s is damaged; it is now %s", name, path, files.set_aside(path, now.wall))
    return stored


def _settle(directories: Directories, name: str, stored: Stored, begun: _Begun, now: Moment) -> Stored:
    path = directories.intent(name)
    if begun.intent is not None and begun.concerns(stored):
        # In another boot the mark proves nothing: it was never synced.
        if begun.mark is not Mark.UNSENT or not begun.intent.at.same_boot(now):
            stored = _doubt(directories, name, stored, _unanswered(begun.intent, now), now)
    elif not begun.moved_past(stored):
        log.warning("%s: an intent fits no record that is known; it is now %s", name, files.set_aside(path, now.wall))
        return stored
    path.unlink(missing_ok=True)
    return stored


def _unanswered(intent: Intent, now: Moment) -> Doubt:
    if intent.at.same_boot(now):
        return Doubt(since=intent.at)
    # That it was spilled is marked where the disk that failed may have forgotten it when the machine went down.
    return Doubt(since=intent.at, spill=intent.spill, begun_from=intent.begun_from)


def _doubt(directories: Directories, name: str, stored: Stored, doubt: Doubt, now: Moment) -> Stored:
    if not isinstance(stored.record, Grant):
        return stored
    description = _KILLED
    if doubt.spill is not None and not files.is_there(Path(doubt.spill).parent):
        description += f" (or it is in {doubt.spill}, which is not there: is a file system not mounted?)"
    doubtful = transition.cut_off(stored.record, description, doubt=doubt, now=now)
    return write_record(directories, name, stored, doubtful)
