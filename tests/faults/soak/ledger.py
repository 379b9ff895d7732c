"""The ledger: it combines the events of servers, network and workload, and checks them."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from refresher.common.secret import Secret
from tests.faults.soak.journal import Journal
from tests.faults.soak.logins import Demand, Login, Presentation, Terms, losses, violations
from tests.support.vault import Vault

__all__ = ["Ledger"]

_SETTLED: Final = 10.0
_IN_FLIGHT: Final = 5.0
_NAMED: Final = "lost"


class Ledger:
    """Records every login and refresh token. Its methods are safe to call from any thread."""

    def __init__(self, journal: Journal, vault: Vault, clock: Callable[[], float] = time.time) -> None:
        self.journal = journal
        self.vault = vault
        self.removed: set[str] = set()
        """Names whose removal by a person has started."""
        self.exchanges = 0
        self.rotations = 0
        self.reasons: Counter[str] = Counter()
        """The faults by which logins were lost."""
        self._clock = clock
        self._about: defaultdict[str, list[Login]] = defaultdict(list)
        """The current logins of a name: one, or two while a person imports."""
        self._of: dict[str, Login] = {}
        self._unchecked: list[tuple[Login, Presentation]] = []
        self._lock = threading.RLock()

    # --- events of servers and network ----------------------------------------------------------------------------

    def minted(self, name: str, terms: Terms, token: str) -> Login:
        """Record a new authorization, which will be imported as ``name``."""
        self.vault.learn(token)
        login = Login(name, terms, [Secret(token).fingerprint()])
        with self._lock:
            self._about[name].append(login)
            self._of[login.chain[0]] = login
        return login

    def presented(self, token: str, *, fault: str, delivers: bool) -> Presentation:
        """Record a refresh token that is sent to a token endpoint."""
        presentation = Presentation(self._clock(), Secret(token).fingerprint(), fault, delivers)
        with self._lock:
            self.exchanges += 1
            login = self._of.get(presentation.fingerprint)
            if login is None:
                self.journal.violated("", "a refresh token was sent that no server issued")
                return presentation
            login.presented.append(presentation)
            self._unchecked.append((login, presentation))
        self.journal.note(login.name, f"sent {_short(presentation.fingerprint)}{f' ({fault})' if fault else ''}")
        return presentation

    def answered(self, presentation: Presentation, status: int, body: bytes) -> None:
        """Record the answer of a server, delivered or not."""
        fields: dict[str, Any] = json.loads(body) if body.startswith(b"{") else {}
        fresh = fields.get("refresh_token") if status == 200 else None
        self.vault.learn(fresh, fields.get("access_token"))
        with self._lock:
            presentation.status, presentation.code = status, str(fields.get("error", ""))
            login = self._of.get(presentation.fingerprint)
            if login is None:
                return
            if fresh is not None:
                presentation.issued = Secret(fresh).fingerprint()
                login.chain.append(presentation.issued)
                self._of[presentation.issued] = login
                self.rotations += 1
        result = presentation.code or ("" if presentation.issued is None else f"-> {_short(presentation.issued)}")
        self.journal.note(login.name, f"answered {_short(presentation.fingerprint)} {status} {result}")

    # --- events of the workload -----------------------------------------------------------------------------------

    def imported(self, login: Login) -> None:
        """Record that a person has imported ``login``."""
        with self._lock:
            self._retire(login.name, keep=login)
            self.removed.discard(login.name)

    def remove(self, name: str) -> None:
        """Record that a person starts to remove ``name``."""
        self.removed.add(name)

    def gone(self, name: str) -> None:
        """Record that a person has removed ``name``."""
        with self._lock:
            self._retire(name, keep=None)

    def _retire(self, name: str, keep: Login | None) -> None:
        for login in self._about[name]:
            if login is not keep:
                login.retired_at = self._clock()
        self._about[name] = [] if keep is None else [keep]

    def killed(self, name: str, fingerprint: str) -> None:
        """Record that a process was killed after it sent this refresh token and before it saved the answer."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is not None:
                login.kills.append((self._clock(), fingerprint))
        self.journal.note(name, f"killed with {_short(fingerprint)} in flight")

    @contextmanager
    def forcing(self, *names: str) -> Iterator[None]:
        """Record that a person runs ``run-once --force`` for ``names`` and waits for it."""
        begun = self._clock()
        with self._lock:
            logins = [login for name in names for login in self._about[name]]
            for login in logins:
                login.forced.append((begun, float("inf")))
        yield
        with self._lock:
            for login in logins:
                login.forced.remove((begun, float("inf")))
                # A request of a killed command may arrive later.
                login.forced.append((begun, self._clock() + _IN_FLIGHT))

    def demanded(self, name: str, generation: int) -> None:
        """Record that an agent is about to demand a new token."""
        for login in self._about[name]:
            login.demands.append(Demand(self._clock(), generation))

    def clock_set(self) -> None:
        """Record that the clock of the machine is about to be set."""
        for login in (login for logins in self._about.values() for login in logins):
            login.clock_set.append(self._clock())

    # --- contents of files ----------------------------------------------------------------------------------------

    def stored(self, name: str, fingerprint: str, generation: int) -> None:
        """Record that a record has this refresh token at this generation."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is None:
                self.journal.violated(name, "a record has a refresh token that no server issued")
                return
            before = max((login.chain.index(known) for known in login.generations), default=0)
            if login.terms.grace == 0 and login.chain.index(fingerprint) < before:
                self.journal.violated(name, "I6: a record went back to an older refresh token")
            login.generations.setdefault(fingerprint, generation)

    def doubted(self, name: str) -> None:
        """Record that ``name`` was published as in doubt."""
        for login in self._about[name]:
            login.doubted = True

    def ended(self, name: str, fingerprint: str, description: str) -> None:
        """Record that the grant with this refresh token has ended; ``description``: the published error."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is None:
                return
            first = login.ended_at is None
            login.ended_at = login.ended_at or self._clock()
            lost = list(losses(login))
        if first:
            self.journal.note(name, f"ended: {description}")
        for presentation in lost[:1]:
            if first:
                self.reasons["killed before it was saved" if presentation.delivers else presentation.fault] += 1
            if _NAMED not in description:
                self.journal.violated(name, f"I4: the error of an ended grant does not name its loss: {description}")
            if not login.doubted and not any(ended > presentation.at for _, ended in login.forced):
                self.journal.violated(name, "I4: a loss was reported without a doubt before it")

    # --- checks ---------------------------------------------------------------------------------------------------

    def check(self, *, everything: bool = False) -> None:
        """Check the older events, because an event of an agent may arrive late; ``everything``: check all events."""
        until = float("inf") if everything else self._clock() - _SETTLED
        with self._lock:
            ready = [entry for entry in self._unchecked if entry[1].at <= until]
            self._unchecked = [entry for entry in self._unchecked if entry[1].at > until]
            for login, presentation in ready:
                for violation in violations(login, presentation):
                    self.journal.violated(login.name, violation)

    def is_lost(self, fingerprint: str) -> bool:
        """Whether a fault has lost the login with this refresh token."""
        with self._lock:
            return fingerprint in self._of and any(losses(self._of[fingerprint]))


def _short(fingerprint: str) -> str:
    return fingerprint[:8]
