"""A soak test, from its first process to its last check."""

import random
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from refresher.grants.record import Grant
from tests.faults.soak.faults import Faults
from tests.faults.soak.journal import Journal
from tests.faults.soak.ledger import Ledger
from tests.faults.soak.processes import Sandbox
from tests.faults.soak.readers import Readers
from tests.faults.soak.report import Result, progress
from tests.faults.soak.servers import Site, running_sites
from tests.faults.soak.workload import Agents, Cron, Daemon, Person
from tests.support import parts
from tests.support.vault import Vault

__all__ = ["Soak"]

_SMALL: Final = 60.0
_PROGRESS_EACH: Final = 5.0
_LONGEST_CALM: Final = 240.0
_FORCE_AGAIN: Final = 3.0
_STATE_SIZE: Final = "size=8m"


class Soak:
    """A soak test of ``seconds``; ``ending`` ends it early; ``verbose``: print progress."""

    def __init__(self, root: Path, seed: int, seconds: float, ending: threading.Event, *, verbose: bool) -> None:
        self.journal = Journal()
        self.ledger = Ledger(self.journal, Vault())
        self.sites: list[Site] = []
        self._seed = seed
        self._seconds = seconds
        self._ending = ending
        self._verbose = verbose
        self._rng = random.Random(f"{seed} person")
        self._calmed: float | None = None
        self._reported = 0
        self._scanned: dict[Path, int] = {}
        self.sandbox = Sandbox(root, self.ledger)

    def run(self) -> Result:
        """Run to the end, and return the figures."""
        began = time.monotonic()
        small = self._seconds < _SMALL
        missing = [reason for reason in (parts.no_mounts(), parts.no_strace()) if reason is not None]
        missing += [] if self.sandbox.has_clock else ["libfaketime is not installed"]
        with ExitStack() as stack:
            # A watching thread that fails would report no more violations.
            stack.callback(setattr, threading, "excepthook", threading.excepthook)
            threading.excepthook = self._thread_failed
            if parts.no_mounts() is None:
                stack.enter_context(parts.mounted(self.sandbox.state, _STATE_SIZE))
            self.sites = stack.enter_context(running_sites(self.ledger, self._seed, small=small))
            of = {name: site for site in self.sites for name in site.names}
            self.readers = Readers(
                self.sandbox.state, tuple(of), self.ledger, lambda name, token: of[name].lives(token)
            )
            self.readers.start()
            stack.callback(self.readers.stop)
            stack.callback(self._check_leftovers)
            self.person = Person(self.sandbox, self.ledger, self.readers, self.sites)
            for name in of:
                self.person.import_(name)
            daemons = []
            for number, options in enumerate([(), ("--log-format", "json")], 1):
                daemons.append(Daemon(self.sandbox, number, *options))
                stack.callback(daemons[-1].end)
            cron = Cron(self.sandbox, 2.0 if small else 5.0)
            stack.callback(cron.end)
            agents = Agents(self.sandbox, self.ledger, self.readers, self.sites)
            stack.callback(agents.end)
            faults = Faults(
                self._seed,
                self.sandbox,
                self.ledger,
                self.readers,
                self.sites,
                (daemons, cron, self.person),
                has_disk=parts.no_mounts() is None,
            )
            faults.start()
            try:
                self._act(agents, time.monotonic() + self._seconds)
            finally:
                faults.end()
                for site in self.sites:
                    site.network.calm = True
            if not self._ending.is_set():
                self._calm(of, agents)
        self.ledger.check(everything=True)
        self._scan()
        return Result(
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

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        text = "".join(traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback))
        self.journal.violated("", f"a fault of the soak test itself: {text}")

    def _act(self, agents: Agents, ends: float) -> None:
        began = time.monotonic()
        printed = began
        while time.monotonic() < ends and not self._ending.wait(self._rng.uniform(0.3, 2.0)):
            self.person.act(self._rng)
            self.ledger.check()
            if time.monotonic() - printed > _PROGRESS_EACH:
                printed = time.monotonic()
                self._scan()
                self._print_progress(printed - began, agents)
                self._forget()

    def _forget(self) -> None:
        """Clear what the servers and proxies record, which short tests need."""
        for site in self.sites:
            site.api.seen.clear()
            site.network.proxy.requests.clear()

    def _print_progress(self, seconds: float, agents: Agents) -> None:
        if self._verbose:
            line = progress(
                seconds,
                self.ledger.exchanges,
                agents.calls,
                self.journal.counts.total(),
                self.ledger.reasons.total(),
                len(self.journal.violations),
            )
            new = self.journal.violations[self._reported :]
            self._reported += len(new)
            for violation in new:
                sys.stderr.write(f"\nVIOLATION {violation.name}: {violation.what}\n")
            sys.stderr.write(f"\r\x1b[K{line}" if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()

    # --- the end --------------------------------------------------------------------------------------------------

    def _calm(self, of: dict[str, Site], agents: Agents) -> None:
        """Wait until every grant that no fault has lost is valid; a person forces the others again and again."""
        began = time.monotonic()
        forced_at = 0.0
        self.readers.catch_up()
        while waiting := [name for name in of if not self._is_valid(name, of[name])]:
            if self._ending.wait(0.1):
                return
            if time.monotonic() - began > _LONGEST_CALM:
                for name in waiting:
                    self.journal.violated(name, f"not valid {_LONGEST_CALM:.0f} s after the last fault")
                return
            if time.monotonic() - forced_at > _FORCE_AGAIN:
                forced_at = time.monotonic()
                for name in waiting:
                    if not isinstance(self.readers.record(name), Grant):
                        self.person.import_(name)
                self.person.force(*(name for name in waiting if isinstance(self.readers.record(name), Grant)))
        # A grant without problems must rotate once more, and a call must succeed.
        valid = [name for name in of if not self._is_lost(name)]
        if valid and self.person.force(*valid) != 0:
            self.journal.violated("", "the last rotation of a valid grant has failed")
        forced = time.monotonic()
        while any(agents.good_at.get(name, 0.0) < forced for name in valid):
            if time.monotonic() - forced > _LONGEST_CALM or self._ending.wait(0.05):
                self.journal.violated("", "a call of an agent fails although its grant is valid")
                break
        self._calmed = time.monotonic() - began

    def _is_valid(self, name: str, site: Site) -> bool:
        record, token = self.readers.record(name), self.readers.token(name)
        if not isinstance(record, Grant) or token is None or record.refresh_token is None:
            return False
        if record.dead:
            # It is published, and the ledger knows the cause.
            return token.state == "reauthorization_required" and self._is_lost(name)
        good = record.failure is None and record.doubt is None and token.state == "active"
        return good and token.access_token is not None and site.lives(token.access_token)

    def _is_lost(self, name: str) -> bool:
        record = self.readers.record(name)
        return (
            isinstance(record, Grant)
            and record.dead
            and record.refresh_token is not None
            and self.ledger.is_lost(record.refresh_token.fingerprint())
        )

    def _check_leftovers(self) -> None:
        """Check that no file is left after every process has ended."""
        if self._calmed is None:
            return
        for path in (*self.sandbox.directories.grants.iterdir(), *self.sandbox.spill.iterdir()):
            # An unreadable answer is kept for a person.
            if path.suffix not in (".json", ".lock") and ".answer." not in path.name:
                self.journal.violated(path.name.partition(".")[0], f"left over: {path.name}")

    def _scan(self) -> None:
        """Search the logs for secrets and internal errors."""
        for path in self.sandbox.logs.iterdir():
            with path.open("rb") as file:
                file.seek(max(self._scanned.get(path, 0) - 200, 0))
                text = file.read().decode("utf-8", "replace")
                self._scanned[path] = file.tell()
            for leak in self.ledger.vault.leaks_in(text):
                self.journal.violated("", f"I7: {path.name} holds a secret: {leak}")
            if "Traceback" in text or "internal error" in text:
                at = text.find("Traceback" if "Traceback" in text else "a fault in")
                self.journal.violated("", f"{path.name} has an internal error: {text[max(at - 100, 0) : at + 1500]}")
