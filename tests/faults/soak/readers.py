"""What lies on the disk at any moment, as a reader sees it: the token files, and the records behind them."""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant, Record, decode
from shim import TokenFile, TokenFileError
from shim._token import parse
from tests.faults.soak.journal import Wait
from tests.faults.soak.ledger import Ledger

__all__ = ["Readers"]

_PAUSE: Final = 0.03
_EACH_LIFE: Final = 1.0
_MEDDLED: Final = 5.0


class _Stamp(NamedTuple):
    """By what a file is known to have changed."""

    modified_ns: int
    inode: int
    size: int
    mode: int


@dataclass
class _Seen:
    """What was seen of one name last."""

    token_stamp: _Stamp | None = None
    token: TokenFile | None = None
    record_stamp: _Stamp | None = None
    record: Record | None = None
    generation: int = -1
    without_since: float | None = None


class Readers:
    """Reads what changes in ``state`` and tells the ledger; ``lives`` says whether a token of a name is good."""

    def __init__(self, state: Path, names: tuple[str, ...], ledger: Ledger, lives: Callable[[str, str], bool]) -> None:
        self.worst = Wait(0.0, "", ())
        """The longest time for which a name was said to be active and was not, and which."""
        self.excused = False
        """Whether somebody does something to everybody that explains dead tokens, such as setting the clock."""
        self._state = state
        self._seen = {name: _Seen() for name in names}
        self._ledger = ledger
        self._lives = lives
        self._meddled: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._looked_at = 0.0
        self._passes = 0

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Look once more, and end."""
        self._ending.set()
        self._thread.join(30)

    def catch_up(self) -> None:
        """Wait until everything was read that was on the disk at the time of this call."""
        # One pass may be under way: the second one from here begins after this call.
        last = self._passes + 2
        while self._passes < last and self._thread.is_alive():
            time.sleep(_PAUSE)

    def meddle(self, name: str) -> None:
        """Somebody is about to damage the token file of ``name``."""
        self._meddled[name] = time.monotonic()

    def token(self, name: str) -> TokenFile | None:
        """Return what was published last."""
        return self._seen[name].token

    def record(self, name: str) -> Record | None:
        """Return what was stored last."""
        return self._seen[name].record

    def _watch(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_PAUSE)
            for name, seen in self._seen.items():
                # First the public file: what it tells is never ahead of the record.
                self._look_at_token(name, seen)
                self._look_at_record(name, seen)
            self._passes += 1
            if time.monotonic() - self._looked_at > _EACH_LIFE:
                self._look_at_lives()
                self._looked_at = time.monotonic()

    # --- the token file -------------------------------------------------------------------------------------------

    def _look_at_token(self, name: str, seen: _Seen) -> None:
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
        if time.monotonic() - self._meddled.get(name, float("-inf")) > _MEDDLED:
            self._meddled.pop(name, None)
        if stamp.mode != 0o600:
            self._ledger.journal.violated(name, f"the token file has mode {stamp.mode:o}")
        self._compare(name, seen.token, token)
        seen.token_stamp, seen.token = stamp, token
        problem = token.error
        self._ledger.journal.note(
            name, f"published {token.generation} {token.state}{'' if problem is None else f' {problem.code}'}"
        )
        if problem is not None and problem.code == "in_doubt":
            self._ledger.doubted(name)
        self._tell_death(name, seen)

    def _damaged(self, name: str, what: str, seen: _Seen) -> None:
        seen.token_stamp = None
        if name not in self._meddled:
            self._ledger.journal.violated(name, what)

    def _compare(self, name: str, before: TokenFile | None, now: TokenFile) -> None:
        violated = self._ledger.journal.violated
        if now.name != name:
            violated(name, "the token file is of another name")
        if now.state == "removed" and name not in self._ledger.removed:
            violated(name, "published as removed, and nobody has removed it")
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

    def _look_at_record(self, name: str, seen: _Seen) -> None:
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
        self._tell_death(name, seen)

    def _tell_death(self, name: str, seen: _Seen) -> None:
        """Tell that a grant is dead once the record and what is published of it say the same."""
        record, token = seen.record, seen.token
        if not isinstance(record, Grant) or not record.dead or record.refresh_token is None:
            return
        if token is not None and token.grant_id == record.grant_id and token.state == "reauthorization_required":
            words = "" if token.error is None else token.error.description
            self._ledger.died(name, record.refresh_token.fingerprint(), words)

    # --- lives ----------------------------------------------------------------------------------------------------

    def _look_at_lives(self) -> None:
        now = time.monotonic()
        for name, seen in self._seen.items():
            token = seen.token
            # A token that is said to fail, to wait for a person or to be removed surprises nobody.
            explained = token is None or token.state != "active" or name in self._meddled or self.excused
            if explained or (token is not None and token.access_token and self._lives(name, token.access_token)):
                seen.without_since = None
                continue
            seen.without_since = now if seen.without_since is None else seen.without_since
            if now - seen.without_since > self.worst.seconds:
                self.worst = Wait(now - seen.without_since, name, self._ledger.journal.trace(name))


def _read(path: Path, known: _Stamp | None) -> tuple[_Stamp, bytes | None]:
    """Return what a file holds, nothing where it is ``known``. Raises ``FileNotFoundError``."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        stamp = _Stamp(status.st_mtime_ns, status.st_ino, status.st_size, stat.S_IMODE(status.st_mode))
        return stamp, None if stamp == known else file.read()
