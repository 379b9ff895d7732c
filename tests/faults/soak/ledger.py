"""The ledger: what the servers, the network and the cast tell, put together and checked."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from refresher.common.secret import Secret
from tests.faults.soak.journal import Journal
from tests.faults.soak.logins import Demand, Login, Presentation, Terms, losses, objections
from tests.support.vault import Vault

__all__ = ["Ledger"]

_SETTLED: Final = 10.0
_IN_FLIGHT: Final = 5.0
_NAMED: Final = "lost"


class Ledger:
    """Knows every login and what became of each refresh token; any thread may tell it something."""

    def __init__(self, journal: Journal, vault: Vault, clock: Callable[[], float] = time.time) -> None:
        self.journal = journal
        self.vault = vault
        self.removed: set[str] = set()
        """Names that a person has begun to remove."""
        self.exchanges = 0
        self.rotations = 0
        self.reasons: Counter[str] = Counter()
        """By which faults logins were lost."""
        self._clock = clock
        self._about: defaultdict[str, list[Login]] = defaultdict(list)
        """The logins of a name that nothing has replaced yet: one, or two while a person imports."""
        self._of: dict[str, Login] = {}
        self._unchecked: list[tuple[Login, Presentation]] = []
        self._lock = threading.RLock()

    # --- what servers and network tell ----------------------------------------------------------------------------

    def minted(self, name: str, terms: Terms, token: str) -> Login:
        """Take note of a new authorization, which is to be imported as ``name``."""
        self.vault.learn(token)
        login = Login(name, terms, [Secret(token).fingerprint()])
        with self._lock:
            self._about[name].append(login)
            self._of[login.chain[0]] = login
        return login

    def presented(self, token: str, *, fault: str, delivers: bool) -> Presentation:
        """Take note of a refresh token on its way to a token endpoint."""
        presentation = Presentation(self._clock(), Secret(token).fingerprint(), fault, delivers)
        with self._lock:
            self.exchanges += 1
            login = self._of.get(presentation.fingerprint)
            if login is None:
                self.journal.violated("", "a refresh token was sent that no server ever gave")
                return presentation
            login.presented.append(presentation)
            self._unchecked.append((login, presentation))
        self.journal.note(login.name, f"sent {_short(presentation.fingerprint)}{f' ({fault})' if fault else ''}")
        return presentation

    def answered(self, presentation: Presentation, status: int, body: bytes) -> None:
        """Take note of what a server decided, delivered or not."""
        fields: dict[str, Any] = json.loads(body) if body.startswith(b"{") else {}
        fresh = fields.get("refresh_token") if status == 200 else None
        self.vault.learn(fresh, fields.get("access_token"))
        with self._lock:
            presentation.status, presentation.code = status, str(fields.get("error", ""))
            login = self._of.get(presentation.fingerprint)
            if login is None:
                return
            if fresh is not None:
                presentation.brought = Secret(fresh).fingerprint()
                login.chain.append(presentation.brought)
                self._of[presentation.brought] = login
                self.rotations += 1
        told = presentation.code or ("" if presentation.brought is None else f"-> {_short(presentation.brought)}")
        self.journal.note(login.name, f"answered {_short(presentation.fingerprint)} {status} {told}")

    # --- what the cast tells --------------------------------------------------------------------------------------

    def imported(self, login: Login) -> None:
        """A person has put ``login`` in its name's place."""
        with self._lock:
            self._retire(login.name, keep=login)
            self.removed.discard(login.name)

    def remove(self, name: str) -> None:
        """A person begins to remove ``name``."""
        self.removed.add(name)

    def gone(self, name: str) -> None:
        """A person has removed ``name``."""
        with self._lock:
            self._retire(name, keep=None)

    def _retire(self, name: str, keep: Login | None) -> None:
        for login in self._about[name]:
            if login is not keep:
                login.retired_at = self._clock()
        self._about[name] = [] if keep is None else [keep]

    def killed(self, name: str, fingerprint: str) -> None:
        """A process was killed between sending this refresh token and saving the answer."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is not None:
                login.kills.append((self._clock(), fingerprint))
        self.journal.note(name, f"killed with {_short(fingerprint)} in flight")

    @contextmanager
    def forcing(self, *names: str) -> Iterator[None]:
        """A person asks for an attempt in any case, and waits for it."""
        begun = self._clock()
        with self._lock:
            logins = [login for name in names for login in self._about[name]]
            for login in logins:
                login.forced.append((begun, float("inf")))
        yield
        with self._lock:
            for login in logins:
                login.forced.remove((begun, float("inf")))
                # What a killed command had sent may arrive a moment later.
                login.forced.append((begun, self._clock() + _IN_FLIGHT))

    def demanded(self, name: str, generation: int) -> None:
        """An agent is about to demand."""
        for login in self._about[name]:
            login.demands.append(Demand(self._clock(), generation))

    def clock_set(self) -> None:
        """The clock of the machine is about to be set."""
        for login in (login for logins in self._about.values() for login in logins):
            login.clock_set.append(self._clock())

    # --- what the files say ---------------------------------------------------------------------------------------

    def stored(self, name: str, fingerprint: str, generation: int) -> None:
        """A record holds this refresh token at this generation."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is None:
                self.journal.violated(name, "a record holds a refresh token that no server ever gave")
                return
            before = max((login.chain.index(known) for known in login.generations), default=0)
            if login.terms.grace == 0 and login.chain.index(fingerprint) < before:
                self.journal.violated(name, "I6: a record went back to an older refresh token")
            login.generations.setdefault(fingerprint, generation)

    def doubted(self, name: str) -> None:
        """The readers of ``name`` were told that it is in doubt."""
        for login in self._about[name]:
            login.doubted = True

    def died(self, name: str, fingerprint: str, words: str) -> None:
        """The record that holds this refresh token is dead; ``words`` are what a person reads."""
        with self._lock:
            login = self._of.get(fingerprint)
            if login is None:
                return
            first = login.dead_at is None
            login.dead_at = login.dead_at or self._clock()
            lost = list(losses(login))
        if first:
            self.journal.note(name, f"dead: {words}")
        for presentation in lost[:1]:
            if first:
                self.reasons["killed before it was saved" if presentation.delivers else presentation.fault] += 1
            if _NAMED not in words:
                self.journal.violated(name, f"I4: the words of a dead grant do not name its loss: {words}")
            if not login.doubted and not any(ended > presentation.at for _, ended in login.forced):
                self.journal.violated(name, "I4: a loss was told without a doubt before it")

    # --- checks ---------------------------------------------------------------------------------------------------

    def check(self, *, everything: bool = False) -> None:
        """Check what has been settled by now: an agent's word may be a moment late."""
        until = float("inf") if everything else self._clock() - _SETTLED
        with self._lock:
            ready = [entry for entry in self._unchecked if entry[1].at <= until]
            self._unchecked = [entry for entry in self._unchecked if entry[1].at > until]
            for login, presentation in ready:
                for objection in objections(login, presentation):
                    self.journal.violated(login.name, objection)

    def is_lost(self, fingerprint: str) -> bool:
        """Whether the login with this refresh token was lost by nature."""
        with self._lock:
            return fingerprint in self._of and any(losses(self._of[fingerprint]))


def _short(fingerprint: str) -> str:
    return fingerprint[:8]
