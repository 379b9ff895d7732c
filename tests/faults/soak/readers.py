"""Watches the token files and the records on the disk, as a reader sees them."""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from refresher.common.errors import GrantFileError
from refresher.grants.encoding import decode
from refresher.grants.record import Grant, Record
from shim import TokenFile, TokenFileError
from shim._token import parse
from tests.faults.soak.journal import Wait
from tests.faults.soak.ledger import Ledger

__all__ = ["Readers"]

_PAUSE: Final = 0.03
_EACH_LIFE: Final = 1.0
_DAMAGE_LASTS: Final = 5.0


class _Stamp(NamedTuple):
    """Attributes of a file that change with its content."""

    modified_ns: int
    inode: int
    size: int
    mode: int


@dataclass
class _Seen:
    """The last known state of one grant."""

    token_stamp: _Stamp | None = None
    token: TokenFile | None = None
    record_stamp: _Stamp | None = None
    record: Record | None = None
    generation: int = -1
    without_since: float | None = None


class Readers:
    """Reads changed files in ``state`` and reports to the ledger; ``lives``: whether an access token of a name is valid."""

    def __init__(self, state: Path, names: tuple[str, ...], ledger: Ledger, lives: Callable[[str, str], bool]) -> None:
        self.worst = Wait(0.0, "", ())
        """The longest time for which a grant was published as active without a live token."""
        self.excused = False
        """Whether a fault explains expired tokens of all grants, such as a changed clock."""
        self._state = state
        self._seen = {name: _Seen() for name in names}
        self._ledger = ledger
        self._lives = lives
        self._damage_expected: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._lives_checked_at = 0.0
        self._passes = 0

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Read once more, and end."""
        self._ending.set()
        self._thread.join(90)

    def catch_up(self) -> None:
        """Wait until everything is read that is on the disk at the time of this call."""
        # A pass may have started before this call: the second one from now starts after it.
        last = self._passes + 2
        while self._passes < last and self._thread.is_alive():
            time.sleep(_PAUSE)

    def expect_damage(self, name: str) -> None:
        """Expect that a fault damages the token file of ``name``."""
        self._damage_expected[name] = time.monotonic()

    def token(self, name: str) -> TokenFile | None:
        """Return the last published token."""
        return self._seen[name].token

    def record(self, name: str) -> Record | None:
        """Return the last stored record."""
        return self._seen[name].record

    def _watch(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_PAUSE)
            for name, seen in self._seen.items():
                # First the token file: it is never newer than the record.
                self._read_token(name, seen)
                self._read_record(name, seen)
            self._passes += 1
            if time.monotonic() - self._lives_checked_at > _EACH_LIFE:
                self._check_lives()
                self._lives_checked_at = time.monotonic()

    # --- the token file -------------------------------------------------------------------------------------------

    def _read_token(self, name: str, seen: _Seen) -> None:
        path = self._state / f"tokens/{name}.json"
        try:
            stamp, data = _read(path, seen.token_stamp)
            if data is None:
                return
            token = parse(data)
        except FileNotFoundError:
            if seen.token is not None and seen.token_stamp is not None:
                self._damaged(name, "I5: the token file is gone", seen)
            return
        except TokenFileError as error:
            self._damaged(name, f"the token file cannot be read: {error}", seen)
            return
        if time.monotonic() - self._damage_expected.get(name, float("-inf")) > _DAMAGE_LASTS:
            self._damage_expected.pop(name, None)
        if stamp.mode != 0o600:
            self._ledger.journal.violated(name, f"the token file has mode {stamp.mode:o}")
        self._check_token(name, seen.token, token)
        seen.token_stamp, seen.token = stamp, token
        problem = token.error
        self._ledger.journal.note(
            name, f"published {token.generation} {token.state}{'' if problem is None else f' {problem.code}'}"
        )
        if problem is not None and problem.code == "in_doubt":
            self._ledger.doubted(name)
        self._report_end(name, seen)

    def _damaged(self, name: str, what: str, seen: _Seen) -> None:
        seen.token_stamp = None
        if name not in self._damage_expected:
            self._ledger.journal.violated(name, what)

    def _check_token(self, name: str, before: TokenFile | None, now: TokenFile) -> None:
        violated = self._ledger.journal.violated
        if now.name != name:
            violated(name, "the token file is of another name")
        if now.state == "removed" and name not in self._ledger.removed:
            violated(name, "published as removed, although no person has removed it")
        if before is None:
            return
        if now.generation < before.generation:
            violated(name, f"the published generation fell from {before.generation} to {now.generation}")
        if now.state == "removed" or before.access_token is None:
            return
        if now.access_token is None:
            if self._lives(name, before.access_token):
                violated(name, "I5: a live access token was withdrawn")
        elif now.access_token != before.access_token and now.generation == before.generation:
            violated(name, "two access tokens of one generation")

    # --- the record -----------------------------------------------------------------------------------------------

    def _read_record(self, name: str, seen: _Seen) -> None:
        path = self._state / f"grants/{name}.json"
        try:
            stamp, data = _read(path, seen.record_stamp)
            if data is None:
                return
            record = decode(data, name).record
        except FileNotFoundError:
            if seen.record is not None:
                self._ledger.journal.violated(name, "the record is gone")
            return
        except GrantFileError as error:
            self._ledger.journal.violated(name, f"the record cannot be read: {error}")
            return
        assert record is not None
        if record.generation < seen.generation:
            self._ledger.journal.violated(name, f"the generation fell from {seen.generation} to {record.generation}")
        seen.record_stamp, seen.record, seen.generation = stamp, record, record.generation
        if isinstance(record, Grant):
            assert record.refresh_token is not None
            self._ledger.stored(name, record.refresh_token.fingerprint(), record.generation)
            if record.doubt is not None:
                self._ledger.doubted(name)
        self._report_end(name, seen)

    def _report_end(self, name: str, seen: _Seen) -> None:
        """Report that a grant has ended once record and token file agree."""
        record, token = seen.record, seen.token
        if not isinstance(record, Grant) or not record.dead or record.refresh_token is None:
            return
        if token is not None and token.grant_id == record.grant_id and token.state == "reauthorization_required":
            description = "" if token.error is None else token.error.description
            self._ledger.ended(name, record.refresh_token.fingerprint(), description)

    # --- lives ----------------------------------------------------------------------------------------------------

    def _check_lives(self) -> None:
        now = time.monotonic()
        for name, seen in self._seen.items():
            token = seen.token
            # A token that is not published as active may have expired.
            explained = token is None or token.state != "active" or name in self._damage_expected or self.excused
            if explained or (token is not None and token.access_token and self._lives(name, token.access_token)):
                seen.without_since = None
                continue
            seen.without_since = now if seen.without_since is None else seen.without_since
            if now - seen.without_since > self.worst.seconds:
                self.worst = Wait(now - seen.without_since, name, self._ledger.journal.trace(name))


def _read(path: Path, known: _Stamp | None) -> tuple[_Stamp, bytes | None]:
    """Return the content of a file, ``None`` if it is unchanged since ``known``. Raises ``FileNotFoundError``."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        stamp = _Stamp(status.st_mtime_ns, status.st_ino, status.st_size, stat.S_IMODE(status.st_mode))
        return stamp, None if stamp == known else file.read()
