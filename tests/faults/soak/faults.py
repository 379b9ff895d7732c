"""Random faults of processes, disks, clocks, servers and files; several at a time, each is undone after a while."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tests.faults.soak.ledger import Ledger
from tests.faults.soak.processes import Run, Sandbox
from tests.faults.soak.readers import Readers
from tests.faults.soak.servers import Site
from tests.faults.soak.workload import Cron, Daemon, Person
from tests.support import parts

__all__ = ["Faults"]

_CLOCKS: Final = ("+5s", "+20s", "-5s", "-20s")
_AFTER_A_CLOCK: Final = 30.0


class Faults:
    """Causes faults at random by ``seed``, until it is ended."""

    def __init__(
        self,
        seed: int,
        sandbox: Sandbox,
        ledger: Ledger,
        readers: Readers,
        sites: list[Site],
        runners: tuple[list[Daemon], Cron, Person],
        *,
        has_disk: bool,
    ) -> None:
        self._rng = random.Random(f"{seed} faults")
        self._sandbox = sandbox
        self._ledger = ledger
        self._readers = readers
        self._sites = sites
        self._daemons, self._cron, self._person = runners
        self._ending = threading.Event()
        self._under_way: list[threading.Thread] = []
        self._disk = threading.Lock()
        self._time = threading.Lock()
        table: list[tuple[str, float, Callable[[random.Random], None]]] = [
            ("daemon killed", 4, self._kill_daemon),
            ("command killed", 4, self._kill_command),
            ("daemon stopped by SIGTERM", 2, lambda rng: self._signal(rng, signal.SIGTERM)),
            ("daemon reloaded by SIGHUP", 2, lambda rng: self._signal(rng, signal.SIGHUP)),
            ("daemon suspended", 2, self._suspend),
            ("server away", 2, self._away),
            ("clients rejected for a while", 1, self._reject),
            ("access token revoked", 3, self._revoke),
            ("demands flooded", 2, self._flood),
            ("token file truncated", 2, self._truncate),
            ("tokens/ removed", 1, lambda _: self._remove("tokens")),
            ("demands/ removed", 1, lambda _: self._remove("demands")),
        ]
        if has_disk:
            table.append(("disk full", 2, self._fill))
        if parts.no_strace() is None:
            table.append(("disk failing (EIO)", 2, self._fail))
        if sandbox.has_clock:
            table.append(("clock set", 0.7, self._set_clock))
        self._table = table
        self._thread = threading.Thread(target=self._go, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Start no more faults, and wait until the current ones are undone."""
        self._ending.set()
        for thread in (self._thread, *self._under_way):
            thread.join(90)

    def _go(self) -> None:
        while not self._ending.wait(self._rng.uniform(0.3, 2.5)):
            ((what, _, fault),) = self._rng.choices(self._table, [weight for _, weight, _ in self._table])
            rng = random.Random(self._rng.random())
            self._under_way = [thread for thread in self._under_way if thread.is_alive()]
            thread = threading.Thread(target=self._do, args=(what, fault, rng), daemon=True)
            self._under_way.append(thread)
            thread.start()

    def _do(self, what: str, fault: Callable[[random.Random], None], rng: random.Random) -> None:
        self._ledger.journal.count(what)
        # The process may end at any moment.
        with suppress(OSError):
            fault(rng)

    # --- processes ------------------------------------------------------------------------------------------------

    @contextmanager
    def _daemon(self, rng: random.Random) -> Iterator[Run | None]:
        """Yield a daemon for one fault at a time; ``None`` if it has another fault or has ended."""
        run = rng.choice(self._daemons).run
        if run is None or not run.busy.acquire(blocking=False):
            yield None
            return
        try:
            yield run if run.alive else None
        finally:
            run.busy.release()

    def _kill_daemon(self, rng: random.Random) -> None:
        with self._daemon(rng) as run:
            if run is None:
                return
            ends = time.monotonic() + 6
            # Most kills happen during an exchange.
            during_exchange = rng.random() < 0.75
            while during_exchange and time.monotonic() < ends and not self._sandbox.in_flight(run.process.pid):
                self._ending.wait(0.001)
            self._sandbox.kill(run)

    def _kill_command(self, rng: random.Random) -> None:
        ends = time.monotonic() + 5
        before = (self._cron.run, self._person.run)
        while (self._cron.run, self._person.run) == before and time.monotonic() < ends:
            self._ending.wait(0.01)
        for run in (self._cron.run, self._person.run):
            if run not in before and run is not None:
                self._ending.wait(rng.uniform(0.05, 0.8))
                self._sandbox.kill(run)

    def _signal(self, rng: random.Random, number: signal.Signals) -> None:
        with self._daemon(rng) as run:
            if run is not None:
                run.process.send_signal(number)

    def _suspend(self, rng: random.Random) -> None:
        with self._daemon(rng) as run:
            if run is not None:
                with self._sandbox.suspended(run):
                    self._ending.wait(rng.uniform(0.5, 6.0))

    # --- servers --------------------------------------------------------------------------------------------------

    def _away(self, rng: random.Random) -> None:
        proxy = rng.choice(self._sites).network.proxy
        proxy.down()
        self._ending.wait(rng.uniform(1.0, 8.0))
        proxy.up()

    def _reject(self, rng: random.Random) -> None:
        network = rng.choice(self._sites).network
        network.reject(on=True)
        self._ending.wait(rng.uniform(1.0, 5.0))
        network.reject(on=False)

    def _revoke(self, rng: random.Random) -> None:
        site = rng.choice(self._sites)
        token = self._readers.token(rng.choice(site.names))
        if token is not None and token.access_token is not None:
            self._ledger.journal.note(token.name, f"its access token of generation {token.generation} is revoked")
            site.authority.revoke(token.access_token)

    # --- files ----------------------------------------------------------------------------------------------------

    def _flood(self, rng: random.Random) -> None:
        demands = self._sandbox.directories.demands
        for name in rng.choice(self._sites).names:
            token = self._readers.token(name)
            newest = 0 if token is None else token.generation
            # Sometimes for the live token, which may be in doubt and protected.
            generations = {max(newest - rng.randrange(20), 0) for _ in range(10)}
            for generation in generations:
                self._ledger.demanded(name, generation)
                (demands / f"{name}.{generation}").touch()
        for junk in ("..", "unknown.1", "strict0-a.x", "strict0-a.-1", f"strict0-a.{10**30}"):
            with suppress(OSError):
                (demands / junk).touch()

    def _names(self) -> list[str]:
        return [name for site in self._sites for name in site.names]

    def _truncate(self, rng: random.Random) -> None:
        name = rng.choice(self._names())
        self._readers.expect_damage(name)
        os.truncate(self._sandbox.directories.token(name), rng.randrange(100))

    def _remove(self, what: str) -> None:
        if what == "tokens":
            for name in self._names():
                self._readers.expect_damage(name)
        shutil.rmtree(self._sandbox.state / what, ignore_errors=True)

    # --- disk and clock -------------------------------------------------------------------------------------------

    def _fill(self, rng: random.Random) -> None:
        filler = self._sandbox.state / "filler"
        if not self._disk.acquire(blocking=False):
            return
        try:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(64 * 1024))
            self._ending.wait(rng.uniform(1.0, 6.0))
        finally:
            filler.unlink(missing_ok=True)
            self._disk.release()

    def _fail(self, rng: random.Random) -> None:
        with self._daemon(rng) as run:
            if run is None:
                return
            faults = [
                "fsync:error=EIO",
                "pwrite64:error=ENOSPC",
                "rename,renameat:error=EIO",
                "unlink,unlinkat:error=EACCES",
            ]
            call = rng.choice(faults)
            strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}", "-p", str(run.process.pid)]
            tracer = subprocess.Popen(
                strace, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            self._ending.wait(rng.uniform(1.0, 4.0))
            tracer.send_signal(signal.SIGINT)  # it detaches from the process
            try:
                tracer.wait(60)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.wait()

    def _set_clock(self, rng: random.Random) -> None:
        if not self._time.acquire(blocking=False):
            return
        try:
            self._readers.excused = True
            self._sandbox.set_clock(rng.choice(_CLOCKS))
            self._ending.wait(rng.uniform(2.0, 15.0))
            self._sandbox.set_clock("+0s")
            self._ending.wait(_AFTER_A_CLOCK)
        finally:
            self._readers.excused = False
            self._time.release()
