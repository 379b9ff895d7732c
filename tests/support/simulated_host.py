"""A machine with simulated clocks and a simulated network, whose processes can be killed between two steps.

The real ``rotate`` of the product runs on it, with real files and a real lock. ``SimulatedHost.__init__`` replaces five
parts, because real ones are too slow for thousands of test runs: the two clocks, the transport of the HTTP client, the
attempt (which can be killed), and fsync (power losses have their own tests, on real disks).
"""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from refresher.common.clocks import Moment
from refresher.grants import policy
from refresher.grants.policy import Decision, Rotate
from refresher.grants.record import Grant, Record, Stored
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import demands, records, recovery
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Attempt, Mark
from refresher.storage.publishing import Publisher
from shim import _token as token_file
from tests.support.fake_state import directories, put
from tests.support.model_server import ModelServer
from tests.support.observer import Observer
from tests.support.simulated_clock import SimulatedClock
from tests.support.simulated_network import Killed, SimulatedNetwork, Trouble

__all__ = ["SimulatedHost"]

_MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A directory in memory, if there is one: a test run writes thousands of files."""


class SimulatedHost:
    """One machine with one grant."""

    def __init__(self, server: ModelServer, clock: SimulatedClock, first: Grant) -> None:
        self.server = server
        self.clock = clock
        self._root = Path(mkdtemp(dir=_MEMORY))
        self.directories: Directories = directories(self._root)
        put(self.directories.record(first.name), first)
        self.observer = Observer(server, clock, first)
        self.record = first
        """The grant as a process reads it."""
        self._network = SimulatedNetwork(clock, self.observer)
        self._forced = False
        self._attempt: _MortalAttempt | None = None
        self._patches = ExitStack()
        for target, replacement in (
            ("refresher.common.clocks.now", clock.read),
            ("refresher.oauth.token_request.time", SimpleNamespace(monotonic=lambda: clock.read().monotonic)),
            ("refresher.oauth.http_client._connection", self._network.connect),
            ("refresher.storage.held_files.Attempt", self._begin),
            ("os.fsync", lambda _: None),
        ):
            self._patches.enter_context(patch(target, replacement))

    def close(self) -> None:
        """Undo the replacements, and remove the files."""
        self._patches.close()
        shutil.rmtree(self._root)

    # Actions of the product.

    @property
    def is_demanded(self) -> bool:
        """Whether an agent demands the next generation."""
        return self._is_demanded(self.record)

    def patience(self) -> float:
        """Return the remaining seconds of a backoff; in one boot, the wall clock does not matter."""
        failure, now = self.record.failure, self.clock.read()
        if failure is None or failure.retry_at is None:
            return 0.0
        if failure.moment is not None and failure.moment.same_boot(now):
            return max(0.0, failure.retry_at - failure.at - (now.boottime - failure.moment.boottime))
        return max(0.0, failure.retry_at - now.wall)

    def demand(self, generation: int) -> None:
        """Demand a rotation beyond ``generation``, as an agent does."""
        (self.directories.demands / f"{self.record.name}.{generation}").touch()

    def decide(self, **how: Any) -> Decision:
        """Return the decision of the product, as cron and the schedule of the daemon get it."""
        return policy.decide(self.record, self.clock.read(), demanded=self.is_demanded, **how)

    def act(
        self,
        *,
        force: bool = False,
        horizon: float = 0.0,
        seen: int | None = None,
        troubles: tuple[Trouble, ...] = (),
    ) -> None:
        """Run one order in one process."""
        before, observer = self.record, self.observer
        seen = before.generation if seen is None else seen
        adopted = before.generation > seen
        decision = self.decide(force=force and not adopted, horizon=0.0 if adopted else horizon)
        unsettled = self._intent.exists() or policy.doubt_in_future(before, self.clock.read())
        cut_off = self._cut_off()
        self._network.troubles, self._network.fault = list(troubles), "none"
        self._forced, self._attempt = force, None
        # As an inspection lists them before the rotation.
        listed = demands.pending(self.directories, (before.name,)).by_name.get(before.name, frozenset())
        order = Order(name=before.name, seen=seen, force=force, horizon=horizon, demanded=listed)
        try:
            result = rotate(FileStore(self.directories), order, Terms(ca_file=None, stopping=lambda: False))
        except Killed:
            assert self._attempt is not None
            self._attempt.close()
            observer.is_killed()
            if not self.clock.knows_boot:
                self._forgets_whether_it_left()
            self._read()
        else:
            assert result is not None
            self._read()
            exchanged = self._attempt is not None
            observer.claim(result.outcome not in ("storage_failed", "invalid_grant_file"), result.detail)
            observer.claim(unsettled or exchanged == isinstance(decision, Rotate), f"I9: the decision was {decision}")
            observer.claim(not self._intent.exists(), "a process that was not killed left an attempt")
            if exchanged:
                observer.ends(before, self.record)
            else:
                self._rested(before, cut_off=cut_off)
            current = Publisher(self.directories).current(self.record)
            still = demands.pending(self.directories, (before.name,)).of(before.name, current)
            observer.claim(still <= {*current}, "a demand was not removed after its rotation")
            observer.compare(self.record)
            self._compare_published()
        assert not observer.wrong, observer.wrong

    def _rested(self, before: Grant, *, cut_off: bool) -> None:
        record, now = self.record, self.clock.read()
        if (
            record.doubt is None
            or record.failure is None
            or record.dead
            or policy.seconds_until_usable(record, now) > 0
        ):
            return
        # An interrupted exchange could not replay its request, so the next run does it without a backoff.
        at_once = cut_off and record.failures > before.failures
        patient = self.patience() > 0.0 and not at_once
        missed = not patient and self.observer.may_replay(record)
        self.observer.claim(not missed, "no replay was sent although the server allows it")

    def _compare_published(self) -> None:
        record, path = self.record, self.directories.token(self.record.name)
        if record.access_token is None and not path.exists():
            return
        seen = token_file.parse(path.read_bytes())
        access = None if record.access_token is None else record.access_token.reveal()
        published = seen.generation, seen.access_token, seen.state == "reauthorization_required"
        expected = record.generation, access, policy.needs_person(record)
        self.observer.claim(published == expected, f"I5: agents see {published}, not {expected}")

    # Files.

    def _read(self) -> None:
        record = records.load(self.directories, self.record.name).record
        assert isinstance(record, Grant)
        self.record = record

    @property
    def _intent(self) -> Path:
        return self.directories.intent(self.record.name)

    def settle(self) -> None:
        """Recover after a killed process, as each writer of a grant does first."""
        recovery.recover(self.directories, self.record.name, self.clock.read())
        self._read()

    def reboot(self, seconds: float, *, loses_mark: bool) -> None:
        """Switch the machine off for ``seconds``; ``loses_mark``: the mark of the intent is lost."""
        self.clock.reboot(seconds)
        self.observer.disturbed = True
        if loses_mark and self._intent.exists():
            self._intent.write_bytes(self._intent.read_bytes()[:-1] + Mark.UNSENT.value)
        self._forgets_whether_it_left()

    def _cut_off(self) -> bool:
        """Whether a killed process left an attempt that had saved nothing."""
        return self._attempt is not None and self._intent.exists() and not self._attempt.saved

    def _forgets_whether_it_left(self) -> None:
        """In another boot, or without boot ids, a missing mark does not prove that nothing was sent."""
        if self._cut_off() and self._attempt is not None:
            self.observer.in_doubt.setdefault(self.observer.holding.refresh, self._attempt.began)

    def _begin(self, where: Directories, name: str, stored: Stored, *, on_sent: Callable[[], None]) -> "_MortalAttempt":
        self._attempt = _MortalAttempt(self, self._network, where, name, stored, on_sent)
        return self._attempt

    def declares(self, grant: Grant) -> None:
        """An exchange begins."""
        self.observer.begins(grant, demanded=self._is_demanded(grant), forced=self._forced)

    def _is_demanded(self, grant: Grant) -> bool:
        # Most steps have no demand: to list the directory as the product does would take a sixth of the time.
        if not (self.directories.demands.is_dir() and any(self.directories.demands.iterdir())):
            return False
        publisher = Publisher(self.directories)
        current = publisher.current(grant)
        pending = demands.pending(self.directories, (grant.name,)).of(grant.name, current)
        return publisher.is_demanded(grant, pending, current)


class _MortalAttempt(Attempt):
    """An attempt whose process can be killed at each of its steps."""

    def __init__(
        self,
        host: SimulatedHost,
        network: SimulatedNetwork,
        where: Directories,
        name: str,
        stored: Stored,
        on_sent: Callable[[], None],
    ) -> None:
        super().__init__(where, name, stored, on_sent=on_sent)
        self._host = host
        self._network = network
        self._saving: Record | None = None
        self.saved = False

    def reserve(self, grant: Grant, at: Moment) -> None:
        self.began = at
        self._host.declares(grant)
        super().reserve(grant, at)

    def before_first_byte(self) -> None:
        self._network.kill("killed before its mark")
        super().before_first_byte()

    def persist(self, record: Grant, *, until_saved: bool) -> Grant:
        self._network.kill("killed before it saved")
        self._saving = record
        return super().persist(record, until_saved=until_saved)

    def _rename(self, path: Path, target: Path) -> None:
        assert isinstance(self._saving, Grant)
        self._host.observer.keeps(self._saving)
        self.saved = True
        self._network.kill("killed before its rename")
        super()._rename(path, target)

    def _finish(self) -> None:
        self._network.kill("killed once it saved")
        super()._finish()
