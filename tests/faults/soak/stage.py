"""A soak from its first process to its last check."""

import random
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from refresher.grants.record import Grant
from tests.faults.soak.cast import Agents, Cron, Daemon, Person
from tests.faults.soak.faults import Faults
from tests.faults.soak.journal import Journal
from tests.faults.soak.ledger import Ledger
from tests.faults.soak.processes import Ground
from tests.faults.soak.readers import Readers
from tests.faults.soak.report import Survived, progress
from tests.faults.soak.servers import Place, opened
from tests.support import parts
from tests.support.vault import Vault

__all__ = ["Stage"]

_SMALL: Final = 60.0
_TOLD_EACH: Final = 5.0
_LONGEST_CALM: Final = 240.0
_ASK_AGAIN: Final = 3.0
_STATE_SIZE: Final = "size=8m"


class Stage:
    """Everything there is; ``ending`` ends it early."""

    def __init__(self, root: Path, seed: int, seconds: float, ending: threading.Event, *, telling: bool) -> None:
        self.journal = Journal()
        self.ledger = Ledger(self.journal, Vault())
        self.places: list[Place] = []
        self._seed = seed
        self._seconds = seconds
        self._ending = ending
        self._telling = telling
        self._dice = random.Random(f"{seed} person")
        self._calmed: float | None = None
        self._told = 0
        self._scanned: dict[Path, int] = {}
        self.ground = Ground(root, self.ledger)

    def play(self) -> Survived:
        """Play to the end, and return what was survived."""
        began = time.monotonic()
        small = self._seconds < _SMALL
        missing = [reason for reason in (parts.no_mounts(), parts.no_strace()) if reason is not None]
        missing += [] if self.ground.has_clock else ["libfaketime is not installed"]
        with ExitStack() as stack:
            # A watcher that has died would see no violation ever after.
            stack.callback(setattr, threading, "excepthook", threading.excepthook)
            threading.excepthook = self._fell_over
            if parts.no_mounts() is None:
                stack.enter_context(parts.mounted(self.ground.state, _STATE_SIZE))
            self.places = stack.enter_context(opened(self.ledger, self._seed, small=small))
            of = {name: place for place in self.places for name in place.names}
            self.readers = Readers(self.ground.state, tuple(of), self.ledger, lambda name, token: of[name].lives(token))
            self.readers.start()
            stack.callback(self.readers.stop)
            stack.callback(self._look_for_leftovers)
            self.person = Person(self.ground, self.ledger, self.readers, self.places)
            for name in of:
                self.person.import_(name)
            daemons = []
            for number, options in enumerate([(), ("--log-format", "json")], 1):
                daemons.append(Daemon(self.ground, number, *options))
                stack.callback(daemons[-1].end)
            cron = Cron(self.ground, 2.0 if small else 5.0)
            stack.callback(cron.end)
            agents = Agents(self.ground, self.ledger, self.readers, self.places)
            stack.callback(agents.end)
            faults = Faults(
                self._seed,
                self.ground,
                self.ledger,
                self.readers,
                self.places,
                (daemons, cron, self.person),
                has_disk=parts.no_mounts() is None,
            )
            faults.start()
            try:
                self._act(agents, time.monotonic() + self._seconds)
            finally:
                faults.end()
                for place in self.places:
                    place.network.calm = True
            if not self._ending.is_set():
                self._calm(of, agents)
        self.ledger.check(everything=True)
        self._scan()
        return Survived(
            seed=self._seed,
            seconds=time.monotonic() - began,
            exchanges=self.ledger.exchanges,
            rotations=self.ledger.rotations,
            acts=self.person.acts,
            calls=agents.calls,
            failed_calls=agents.failures,
            faults=self.journal.counts,
            losses=self.ledger.reasons,
            worst=self.readers.worst,
            memory=max(each.peak_memory for each in daemons),
            files=max(each.peak_files for each in daemons),
            violations=self.journal.violations,
            missing=missing,
            calmed=self._calmed,
        )

    def _fell_over(self, what: threading.ExceptHookArgs) -> None:
        told = "".join(traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback))
        self.journal.violated("", f"a fault of the soak itself: {told}")

    def _act(self, agents: Agents, ends: float) -> None:
        began = time.monotonic()
        told = began
        while time.monotonic() < ends and not self._ending.wait(self._dice.uniform(0.3, 2.0)):
            self.person.act(self._dice)
            self.ledger.check()
            if time.monotonic() - told > _TOLD_EACH:
                told = time.monotonic()
                self._scan()
                self._tell(told - began, agents)
                self._forget()

    def _forget(self) -> None:
        """Let go of what the counterparts remember for tests that are shorter."""
        for place in self.places:
            place.api.seen.clear()
            place.network.proxy.requests.clear()

    def _tell(self, seconds: float, agents: Agents) -> None:
        if self._telling:
            line = progress(
                seconds,
                self.ledger.exchanges,
                agents.calls,
                self.journal.counts.total(),
                self.ledger.reasons.total(),
                len(self.journal.violations),
            )
            news = self.journal.violations[self._told :]
            self._told += len(news)
            for violation in news:
                sys.stderr.write(f"\nVIOLATION {violation.name}: {violation.what}\n")
            sys.stderr.write(f"\r\x1b[K{line}" if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()

    # --- the end --------------------------------------------------------------------------------------------------

    def _calm(self, of: dict[str, Place], agents: Agents) -> None:
        """See every grant well again that was not lost by nature, with a person who is impatient."""
        began = time.monotonic()
        asked = 0.0
        self.readers.catch_up()
        while waiting := [name for name in of if not self._is_well(name, of[name])]:
            if self._ending.wait(0.1):
                return
            if time.monotonic() - began > _LONGEST_CALM:
                for name in waiting:
                    self.journal.violated(name, f"not well {_LONGEST_CALM:.0f} s after the last fault")
                return
            if time.monotonic() - asked > _ASK_AGAIN:
                asked = time.monotonic()
                for name in waiting:
                    if not isinstance(self.readers.record(name), Grant):
                        self.person.import_(name)
                self.person.force(*(name for name in waiting if isinstance(self.readers.record(name), Grant)))
        # What looks well is well: one more rotation of each, and a call.
        well = [name for name in of if not self._is_lost(name)]
        if well and self.person.force(*well) != 0:
            self.journal.violated("", "a last rotation of what was well has failed")
        forced = time.monotonic()
        while any(agents.good_at.get(name, 0.0) < forced for name in well):
            if time.monotonic() - forced > _LONGEST_CALM or self._ending.wait(0.05):
                self.journal.violated("", "an agent cannot call, and nothing is wrong")
                break
        self._calmed = time.monotonic() - began

    def _is_well(self, name: str, place: Place) -> bool:
        record, token = self.readers.record(name), self.readers.token(name)
        if not isinstance(record, Grant) or token is None or record.refresh_token is None:
            return False
        if record.dead:
            # Its readers know, and the ledger knows why.
            return token.state == "reauthorization_required" and self._is_lost(name)
        good = record.failure is None and record.doubt is None and token.state == "active"
        return good and token.access_token is not None and place.lives(token.access_token)

    def _is_lost(self, name: str) -> bool:
        record = self.readers.record(name)
        return (
            isinstance(record, Grant)
            and record.dead
            and record.refresh_token is not None
            and self.ledger.is_lost(record.refresh_token.fingerprint())
        )

    def _look_for_leftovers(self) -> None:
        """Look at what lies about once every process has ended in good order."""
        if self._calmed is None:
            return
        for path in (*self.ground.directories.grants.iterdir(), *self.ground.spill.iterdir()):
            # An answer that could not be read is kept for a person, until he removes or nobody needs it.
            if path.suffix not in (".json", ".lock") and ".answer." not in path.name:
                self.journal.violated(path.name.partition(".")[0], f"left over: {path.name}")

    def _scan(self) -> None:
        """Search what the logs say for secrets."""
        for path in self.ground.logs.iterdir():
            with path.open("rb") as file:
                file.seek(max(self._scanned.get(path, 0) - 200, 0))
                text = file.read().decode("utf-8", "replace")
                self._scanned[path] = file.tell()
            for leak in self.ledger.vault.leaks_in(text):
                self.journal.violated("", f"I7: {path.name} holds a secret: {leak}")
            if "Traceback" in text or "internal error" in text:
                at = text.find("Traceback" if "Traceback" in text else "a fault in")
                self.journal.violated("", f"{path.name} tells of a fault: {text[max(at - 100, 0) : at + 1500]}")
