"""Recovery: adopt, keep or remove the files that an interrupted attempt left.

Every writer of a grant calls ``recover`` under the lock before anything else. A crash can interrupt each step, and
the next recovery repeats it. ``refresher/ARCHITECTURE.md`` has the table of what a crash leaves.
A file that fits no known record is set aside under another name, never adopted and never deleted.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from refresher.common import text
from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError, KeyUnavailable, StorageError
from refresher.grants import transition
from refresher.grants.encoding import open_secrets, version_error
from refresher.grants.record import NO_RECORD, Doubt, Grant, Record, Stored
from refresher.storage import files, records
from refresher.storage.directories import Directories
from refresher.storage.journal import Intent, Mark, read_intent
from refresher.storage.publishing import read_published
from refresher.storage.records import Candidate

__all__ = ["backup_hint", "recover"]

log = logging.getLogger(__name__)

_LONGEST_WRITE: Final = 3600.0
"""Seconds. refresher renames a record into place sooner, so a later time shows that a person put the file there."""


def recover(
    directories: Directories,
    name: str,
    now: Moment,
    *,
    damaged: bool = False,
    giving_up: bool = False,
    removing: bool = False,
    unfinished: bool = False,
    loaded: Stored | None = None,
    report: Callable[[str, int | None], None] = lambda _, __: None,
) -> Stored:
    """Settle what earlier attempts left, recognise a restored backup, and return the record after that.

    ``damaged``: the record on the disk cannot be read, and the caller has kept it elsewhere. ``giving_up``: a person
    replaces or removes the grant, so an answer in a spill that is not mounted is not needed any more. ``removing``: it
    is removed, and what is set aside is deleted with it. ``unfinished``: a listing showed files of an attempt; else
    they are looked up by name. ``loaded``: the record, if the caller has read it under this lock. ``report`` takes each
    finding, and the generation of the record after it.

    Raises ``GrantFileError`` for a record that cannot be read or a file of a later version (nothing is changed then),
    and ``StorageError`` if the disk fails, or if a saved answer is in a spill that is not mounted.
    """
    stored = Stored(None, NO_RECORD) if damaged else loaded or records.load(directories, name)
    recovery = _Recovery(directories, name, stored, now, giving_up=giving_up, removing=removing, report=report)
    try:
        if giving_up:
            recovery.keep_what_cannot_be_opened()
        recovery.adopt_late_spill()
        if unfinished or directories.attempt_files(name):
            recovery.settle_attempt()
        recovery.recognise_backup()
        recovery.restart_doubt_of_the_future()
    except OSError as error:
        raise StorageError(f"cannot recover {name} after an interrupted operation: {error.strerror}") from None
    return recovery.stored


def backup_hint(directories: Directories, grant: Grant) -> str:
    """Return a hint, from the time of the file, why the server has just rejected a grant; often empty."""
    try:
        put_there = directories.record(grant.name).stat().st_ctime
    except OSError:
        return ""
    failed = 0.0 if grant.failure is None else grant.failure.at
    written = max(grant.last_rotation_at or 0.0, grant.authorized_at, failed)
    if put_there - written < _LONGEST_WRITE:
        return ""
    return (
        f" (its file was put there at {text.clock_time(put_there)}, long after it was written: a refresh token in "
        "a backup is usually spent)"
    )


class _Recovery:
    """The recovery of one grant; ``stored`` is the record after each step."""

    def __init__(
        self,
        directories: Directories,
        name: str,
        stored: Stored,
        now: Moment,
        *,
        giving_up: bool,
        removing: bool,
        report: Callable[[str, int | None], None],
    ) -> None:
        self.stored = stored
        self._report_finding = report
        self._directories = directories
        self._name = name
        self._now = now
        self._giving_up = giving_up
        self._removing = removing
        self._unwritten = False

    def keep_what_cannot_be_opened(self) -> None:
        """Keep a sealed record whose key is not here under another name: it is replaced or removed next."""
        try:
            open_secrets(self.stored.record)
        except GrantFileError as error:
            if self._removing:
                self._report(f"the record cannot be opened: {error}; it is deleted with the grant")
                return
            aside = files.keep_aside(self._directories.record(self._name), self._now.wall)
            self._report(f"the record cannot be opened: {error}; it is now {aside} too")

    def adopt_late_spill(self) -> None:
        """Adopt a spill whose file system was mounted after its attempt was settled, if it still fits."""
        record = self.stored.record
        if not isinstance(record, Grant) or record.doubt is None or (path := records.spill_of(record)) is None:
            return
        spill = self._read(path)
        successor = spill.record
        self._open()
        if (
            isinstance(successor, Grant)
            and successor.begun_from == record.doubt.begun_from
            and successor.grant_id == record.grant_id
            # A backup that was recognised meanwhile has the published generation, which is that of the spill.
            and successor.generation + record.doubt.restored > record.generation
        ):
            self._adopt(path, successor)
            if not self._unwritten:
                path.unlink()
                return
        self._clear(spill)

    def settle_attempt(self) -> None:
        """Adopt the answer of an interrupted attempt, or record that its refresh token may be spent."""
        paths = self._directories.candidates(self._name)
        intent_path = self._directories.intent(self._name)
        if not paths and not os.path.lexists(intent_path):
            return
        self._open()
        # After a kill or an error between a rename and its sync, the record may be in memory only.
        files.sync_directory(self._directories.grants)
        try:
            intent, mark = read_intent(intent_path) or (None, None)
            damaged = False
        except ValueError:
            intent, mark, damaged = None, None, True
        # A damaged intent does not contain the place of its answer any more.
        spill = Path(intent.spill) if intent else self._directories.spilled(self._name, self.stored.checksum)
        if os.path.lexists(spill):
            paths.append(spill)
        _, *candidates = [self._read(path) for path in (intent_path, *paths)]
        answers = (each for each in candidates if each.record and each.record.begun_from == self.stored.checksum)
        answer = next(answers, None)
        spilled = intent is not None and mark is Mark.SPILLED and self._began_here(intent)
        if intent and spilled and answer is None and not self._giving_up:
            if os.path.lexists(spill):
                raise GrantFileError(
                    f"{spill}, in which the new record of {self._name} was saved, is damaged: restore it from a copy, "
                    f"or log in again, which sets it aside: 'refresher login {self._name}'"
                )
            raise StorageError(
                f"the new record of {self._name} was saved in {intent.spill}, which does not exist now: mount its "
                f"file system, or log in again, which discards that record: 'refresher login {self._name}'"
            )
        if damaged:
            # Before an answer is adopted: otherwise the intent would put the adopted record in doubt.
            self._settle_damaged_intent(intent_path, answered=answer is not None)
        if answer is not None and answer.record is not None:
            self._adopt(answer.path, answer.record)
        elif (record := self.stored.record) is not None and any(map(self._is_copy, candidates)):
            # It was saved twice because something failed: the copy is removed only after the record is durable.
            self.stored = Stored(None, record.begun_from)
            self._write(record)
        for candidate in reversed(candidates):
            self._clear(candidate)
        if intent and mark:
            self._settle_intent(intent_path, intent, mark)
        elif not damaged:
            intent_path.unlink(missing_ok=True)  # its writing was cut off, and so nothing was sent

    def recognise_backup(self) -> None:
        """Put a grant in doubt if its published token has a later generation: somebody restored a backup.

        The newer token of the readers stays published and is protected, as after a lost answer. When it expires, the
        old refresh token is tried, because some servers do not rotate.
        """
        grant = self.stored.record
        if not isinstance(grant, Grant):
            return
        published = read_published(self._directories, self._name, grant)
        if published is None or published.grant_id != grant.grant_id or published.generation <= grant.generation:
            return
        # The times of its access token protect it. The token itself stays in the file alone.
        lifetime = None if published.access_token is None else (published.issued_at, published.expires_at)
        restored = transition.mark_restored(grant, published.generation, lifetime, now=self._now)
        self._write(restored)
        self._report("" if restored.failure is None else restored.failure.description)

    def restart_doubt_of_the_future(self) -> None:
        """Start a doubt now if the clock says that it begins later, so that its wait ends."""
        grant = self.stored.record
        if isinstance(grant, Grant) and (restarted := transition.with_doubt_restarted(grant, self._now)) is not grant:
            self._write(restarted)

    def _adopt(self, path: Path, successor: Record) -> None:
        # Written again and not renamed: it is unknown whether its bytes reached the disk.
        self._write(successor)
        if not self._unwritten:
            self._report(f"adopted what an earlier attempt had saved in {path}")

    def _settle_damaged_intent(self, path: Path, *, answered: bool) -> None:
        """Record a doubt if all that is known of an attempt is that it was declared."""
        in_doubt = isinstance(self.stored.record, Grant) and self.stored.record.doubt is not None
        if not answered and not in_doubt:
            # The intent was intact once, so a request may have been sent; it does not say when.
            self._record_doubt(Doubt(since=self._now, replay_over=True))
        self._report(f"the intent {path} is damaged; it is {self._set_aside(path)}")

    def _settle_intent(self, path: Path, intent: Intent, mark: Mark) -> None:
        """Remove the intent; first record a doubt if its request may have been sent without an answer."""
        if self._began_here(intent):
            if not intent.at.same_boot(self._now):
                # After a reboot the mark proves nothing: it was never synced. The mark of a spill was written to the
                # disk that failed, so it may be lost too.
                self._record_doubt(Doubt(since=intent.at, spill=intent.spill, begun_from=intent.begun_from))
            elif mark is not Mark.UNSENT:
                self._record_doubt(Doubt(since=intent.at))
        elif not self._is_settled(intent):
            self._report(f"an intent fits no known record; it is {self._set_aside(path)}")
            return
        if not self._unwritten:
            path.unlink(missing_ok=True)

    def _is_settled(self, intent: Intent) -> bool:
        """Whether the record is already the result of this attempt, or of a later one."""
        record = self.stored.record
        return record is not None and (record.begun_from == intent.begun_from or record.generation > intent.generation)

    def _began_here(self, intent: Intent) -> bool:
        """Whether the attempt began from the record that is stored, or would have spent its refresh token."""
        if self._is_settled(intent):
            return False
        record = self.stored.record
        token = record.refresh_token if isinstance(record, Grant) else None
        return self.stored.checksum == intent.begun_from or (
            token is not None and token.fingerprint() == intent.fingerprint
        )

    def _record_doubt(self, doubt: Doubt) -> None:
        if not isinstance(self.stored.record, Grant):
            return
        description = transition.INTERRUPTED
        if doubt.spill is not None and not os.path.lexists(Path(doubt.spill).parent):
            description += f" (or it is in {doubt.spill}, which is not there: is a file system not mounted?)"
        self._write(transition.mark_interrupted(self.stored.record, description, doubt=doubt, now=self._now))
        self._note(description)  # the failure of the grant says it, so it is not logged here

    def _report(self, finding: str) -> None:
        log.warning("%s: %s", self._name, finding)
        self._note(finding)

    def _note(self, finding: str) -> None:
        self._report_finding(finding, None if self.stored.record is None else self.stored.record.generation)

    def _open(self) -> None:
        """Open the record, before anything is changed: what an attempt left is settled with its key, or not at all."""
        try:
            open_secrets(self.stored.record)
        except GrantFileError:
            if not self._giving_up:
                raise

    def _write(self, record: Record) -> None:
        try:
            self.stored = records.write(self._directories, self._name, self.stored, record)
        except GrantFileError:  # of encoding it: the secrets are sealed
            if not self._giving_up:
                raise
            # A person replaces or removes it: what is known of it counts, and the record stays until then.
            self.stored = Stored(record, self.stored.checksum)
            self._unwritten = True

    def _read(self, path: Path) -> Candidate:
        """Read a file, and open what is sealed in it.

        Refuse one that a later version wrote, or whose key is not here: it may be the only copy of a refresh token.
        """
        found = records.read_candidate(path, self._name, self._directories.keys)
        if not self._giving_up and (why := version_error(found.data)) is not None:
            raise GrantFileError(f"{path}: {why}")
        try:
            open_secrets(found.record)
        except KeyUnavailable as error:
            if not self._giving_up:
                raise KeyUnavailable(f"{path}: {error}") from None
            return found._replace(record=None)
        except GrantFileError:
            return found._replace(record=None)
        return found

    def _clear(self, found: Candidate) -> None:
        """Remove a blank reservation or a copy of the record; set anything else aside, as it may be the only copy."""
        is_copy = self._is_copy(found)
        if not found.data.strip(b"\0") or (is_copy and not self._unwritten):
            found.path.unlink(missing_ok=True)
        else:
            why = "could not be adopted without the key of each write" if is_copy else "fits no known record"
            self._report(f"{found.path} {why}; it is {self._set_aside(found.path)}")

    def _is_copy(self, found: Candidate) -> bool:
        # The records and not the checksums: an adopted record is written in the present version.
        try:
            return found.record is not None and found.record == self.stored.record
        except GrantFileError:
            return False  # a person gives up a record that cannot be opened

    def _set_aside(self, path: Path) -> str:
        """Set a file aside, and return where it is, for a sentence."""
        aside = files.set_aside(path, self._now.wall)
        return "deleted with the grant" if self._removing else f"now {aside}"
