"""Chaos around a database: refreshers on many hosts are killed and paused, and each refresh token is counted.

``python -m tests.faults.soak.cluster MINUTES [--seed N] [--grants N] [--refreshers N]``. What an authorization server
was sent, what the database has stored and what a kill can have cost must agree.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret
from refresher.grants.record import Grant, Stored
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.storage.postgres import migrations
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support import postgres
from tests.support.command import wait_until
from tests.support.fake_state import directories
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

__all__ = ["Chaos", "Found", "busiest", "text"]

_LIFE: Final = 5.0
"""Seconds for which an access token is valid."""

_GRANTS_PER_SERVER: Final = 25
_LONGEST_ANSWER: Final = 0.3
_LONGEST_CALM: Final = 240.0

_HISTORY: Final = """CREATE TABLE public.history (name text, generation bigint, fingerprint text, kind text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.history VALUES (NEW.name, NEW.generation, NEW.fingerprint, NEW.kind); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OF generation, fingerprint ON refresher.lease
    FOR EACH ROW EXECUTE FUNCTION public.note();"""

_SENDING: Final = """SELECT l.name, l.fingerprint FROM refresher.lease l JOIN pg_stat_activity a
    ON a.pid = l.holder_pid AND a.backend_start = l.holder_start
    WHERE a.application_name = %s AND l.state = 'armed'"""

_END_OF_THE_DEAD: Final = """UPDATE refresher.lease l SET until = clock_timestamp() - interval '1 s',
    next_at = clock_timestamp() WHERE attempt IS NOT NULL AND NOT EXISTS (
    SELECT FROM pg_stat_activity a WHERE a.pid = l.holder_pid AND a.backend_start = l.holder_start)"""


class Found(NamedTuple):
    """The figures of a run."""

    seed: int
    seconds: float
    exchanges: int
    stored: int
    """Generations that the database has stored."""
    faults: Counter[str]
    twice: list[str]
    """Refresh tokens that were sent twice, each with the kill that allowed it."""
    lost: list[str]
    """Logins that ended, each with the kill that ended it."""
    busiest: int
    """Most requests to one server within a second."""
    violations: list[str]


def text(found: Found) -> str:
    """Return the figures for a person."""
    faults = ", ".join(f"{number} {kind}" for kind, number in sorted(found.faults.items())) or "none"
    lines = [
        f"database      {found.exchanges} exchanges in {found.seconds:.0f} s with --seed {found.seed}; {found.stored} "
        f"generations stored; at most {found.busiest} requests to a server within a second",
        f"its faults    {faults}",
        f"sent twice    {len(found.twice)}, each after a kill in its exchange, when its access token had expired",
        *(f"              {each}" for each in found.twice),
        f"logins lost   {len(found.lost)}, each by a kill between the answer and its COMMIT",
        *(f"              {each}" for each in found.lost),
        f"its problems  {len(found.violations)}",
        *(f"VIOLATION     {each}" for each in found.violations),
    ]
    return "\n".join(lines)


class _Refresher:
    """``refresher run`` on a host of its own, and how often it was started."""

    def __init__(self, root: Path, number: int, url: str) -> None:
        self.number = number
        self._url = url
        self._starts = 0
        self._home = root / f"host-{number}"
        (self._home / ".config/refresher").mkdir(parents=True, mode=0o700)
        # Each host has the tokens of a tenth of the grants, so that the disk of this machine is not what is measured.
        (self._home / ".config/refresher/config.toml").write_text(f'mirror = ["*{number}"]\n')
        self.log = self._home / "log"
        self.paused = False
        self.start()

    @property
    def session(self) -> str:
        """What the sessions of this process are called in the database."""
        return f"refresher-{self.number}-{self._starts}"

    @property
    def grants(self) -> Path:
        return self._home / ".local/state/refresher/grants"

    def start(self) -> None:
        self._starts += 1
        environment = {
            "HOME": str(self._home),
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "REFRESHER_STORE": f"{self._url}?application_name={self.session}",
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "refresher", "run"]
            self.process = subprocess.Popen(
                command, env=environment, cwd=self._home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def pause(self) -> None:
        self.paused = True
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.paused = False
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Chaos:
    """A run of ``seconds``; ``hasten``: leases of dead processes end at the end of the run, not after half a minute."""

    def __init__(
        self, seed: int, seconds: float, *, grants: int = 1000, refreshers: int = 8, interval: float = 5.0, hasten: bool
    ) -> None:
        self._rng = random.Random(f"{seed} cluster")
        self._answers = random.Random(f"{seed} answers")
        self._seed, self._seconds, self._interval, self._hasten = seed, seconds, interval, hasten
        self._number, self._hosts = grants, refreshers
        self._killed: dict[str, str] = {}
        """The fingerprint that each killed process was sending, and which kill that was."""
        self._faults: Counter[str] = Counter()
        self._violations: list[str] = []
        self._vault = Vault()
        self._url = ""
        self._servers: list[TokenServer] = []
        self._refreshers: list[_Refresher] = []

    def run(self) -> Found:
        """Run to the end, and return the figures."""
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True)))
            server = stack.enter_context(postgres.running(*postgres.FAST, "max_connections=300"))
            self._url = stack.enter_context(server.database())
            store = PostgresStore(self._url, directories(root / "look"))
            stack.callback(store.close)
            migrations.migrate(store.database)
            for statement in _HISTORY.split("\n\n"):
                self._execute(statement)
            for _ in range(-(-self._number // _GRANTS_PER_SERVER)):
                hold = lambda: time.sleep(self._answers.uniform(0.0, _LONGEST_ANSWER))  # noqa: E731
                self._servers.append(stack.enter_context(TokenServer(lambda _: _LIFE, hold, grace=0)))
            self._import(store)
            for number in range(self._hosts):
                self._refreshers.append(_Refresher(root, number, self._url))
                stack.callback(self._refreshers[-1].end)
            # A busy machine takes long to start them.
            wait_until(lambda: any(each.asked for each in self._servers), "a refresher has begun")
            acting = time.monotonic()
            self._act(acting + self._seconds)
            seconds = time.monotonic() - acting
            exchanges = sum(len(asked) for each in self._servers for asked in each.asked.values())
            self._calm(store)
            self._stop()
            return self._account(store, seconds, exchanges)

    def _import(self, store: PostgresStore) -> None:
        for number in range(self._number):
            name = f"grant-{number:04d}"
            fields = self._servers[number % len(self._servers)].grant(name)
            self._vault.learn(fields["refresh_token"])
            parsed = import_request.parse(name, json.dumps(fields).encode(), clocks.now())
            store_grant(store, parsed, replace=False, if_absent=False, stopping=lambda: False)

    def _act(self, ends: float) -> None:
        """Kill or pause one refresher after each interval; start or resume it later."""
        again: list[tuple[float, _Refresher]] = []
        while (now := time.monotonic()) < ends:
            time.sleep(max(min(self._interval, ends - now), 0.0))
            for due in [each for each in again if each[0] <= time.monotonic()]:
                again.remove(due)
                self._return(due[1])
            able = [each for each in self._refreshers if not each.paused and each.process.poll() is None]
            if len(able) < 2:
                continue
            chosen = self._rng.choice(able)
            if self._rng.random() < 0.6:
                self._kill(chosen)
                again.append((time.monotonic() + self._rng.uniform(0.0, self._interval), chosen))
            else:
                chosen.pause()
                self._faults["pauses"] += 1
                # Some end after the leases of the process have ended.
                again.append((time.monotonic() + self._rng.choice((1, 3, 8)) * self._interval, chosen))
        for _, refresher in again:
            self._return(refresher)

    def _return(self, refresher: _Refresher) -> None:
        if refresher.paused:
            refresher.resume()
        else:
            refresher.start()

    def _kill(self, refresher: _Refresher) -> None:
        """Kill a process, and note what it was sending."""
        if refresher.process.poll() is not None:
            self._violations.append(f"{refresher.session} had ended by itself: {_last_line(refresher.log)}")
            return
        refresher.process.send_signal(signal.SIGSTOP)
        self._faults["kills"] += 1
        kill = f"kill {self._faults['kills']} ({refresher.session})"
        for name, fingerprint in self._execute(_SENDING, refresher.session):
            self._killed[fingerprint] = f"{name}: {kill}"
        refresher.end()

    def _calm(self, store: PostgresStore) -> None:
        """Wait until each grant has rotated after the last fault, or has ended by a kill."""
        reached = dict(self._execute("SELECT name, generation FROM refresher.lease"))
        ends = time.monotonic() + _LONGEST_CALM
        while time.monotonic() < ends:
            if self._hasten:
                self._execute(_END_OF_THE_DEAD)
            now = dict(self._execute("SELECT name, generation FROM refresher.lease"))
            waiting = [name for name, at in reached.items() if now[name] <= at]
            waiting = [name for name, stored in store.load_each(waiting) if not _is_dead(stored)]
            if not waiting:
                return
            time.sleep(0.5)
        for name, stored in store.load_each(waiting[:5]):
            ((lease),) = self._execute(
                "SELECT state, armed_at::text, until::text, next_at::text, clock_timestamp()::text, holder_pid "
                "FROM refresher.lease WHERE name = %s",
                name,
            )
            grant = _grant(stored)
            why = (grant.failure, grant.doubt, grant.generation)
            self._violations.append(f"{name}: one of {len(waiting)} that do not rotate: {why} {lease}")

    def _stop(self) -> None:
        for refresher in self._refreshers:
            refresher.process.terminate()
        for refresher in self._refreshers:
            code = refresher.process.wait(120)
            log = refresher.log.read_text()
            if code != 0:
                self._violations.append(f"{refresher.session} ended with {code}: {_last_line(refresher.log)}")
            if "Traceback" in log or "internal error" in log:
                self._violations.append(f"{refresher.session} has an internal error: {_line_of(log)}")
            if spills := list(refresher.grants.glob("*.spill")):
                self._violations.append(f"{refresher.session} left {len(spills)} spills")
            for server in self._servers:
                self._vault.learn(*(token for sent in server.presented.values() for token in sent))
            if leaks := self._vault.leaks_in(log):
                self._violations.append(f"I7: the log of {refresher.session} holds {leaks}")

    def _account(self, store: PostgresStore, seconds: float, exchanges: int) -> Found:
        twice = list(self._sent_twice())
        lost = []
        names = [f"grant-{number:04d}" for number in range(self._number)]
        for name, stored in store.load_each(names):
            if not _is_dead(stored):
                continue
            if (kill := self._kill_behind(name, _grant(stored))) is not None:
                lost.append(kill)
            else:
                self._violations.append(f"{name} was lost without a kill in its exchange: {self._story(name)}")
        for row in self._execute(
            "SELECT name, generation, count(DISTINCT fingerprint) FROM public.history WHERE kind = 'grant' "
            "GROUP BY name, generation HAVING count(DISTINCT fingerprint) > 1"
        ):
            self._violations.append("{}: generation {} has {} refresh tokens".format(*row))
        for row in self._execute("SELECT name, why FROM refresher.orphan"):
            self._violations.append("{}: an orphan: {}".format(*row))
        for row in self._execute("SELECT name, state FROM refresher.lease WHERE attempt IS NOT NULL"):
            self._violations.append("{}: its lease is still {}".format(*row))
        ((stored_count,),) = self._execute(
            "SELECT count(DISTINCT (name, generation)) FROM public.history WHERE generation > 0"
        )
        return Found(
            seed=self._seed,
            seconds=seconds,
            exchanges=exchanges,
            stored=stored_count,
            faults=self._faults,
            twice=twice,
            lost=lost,
            busiest=max(busiest(server) for server in self._servers),
            violations=self._violations,
        )

    def _kill_behind(self, name: str, dead: Grant) -> str | None:
        """Return the kill that ended a login.

        It was in the exchange of the refresh token, or in the one that issued it: then its spill came back after another
        refresher had sent the one before again.
        """
        fingerprint = dead.fingerprint()
        before = self._execute(
            "SELECT DISTINCT fingerprint FROM public.history WHERE name = %s AND generation = %s",
            name,
            dead.generation - 1,
        )
        for each in (fingerprint, *(row[0] for row in before)):
            sent = [Secret(token).fingerprint() for token in self._server_of(name).presented[name]]
            if each in self._killed and (each == fingerprint or sent.count(each) > 1):
                return self._killed[each]
        return None

    def _server_of(self, name: str) -> TokenServer:
        return next(each for each in self._servers if name in each.asked)

    def _story(self, name: str) -> str:
        """Return what is known of the end of a grant: what was sent last, what was stored, and what was logged."""
        server = self._server_of(name)
        sent = [Secret(token).fingerprint()[:6] for token in server.presented[name][-5:]]
        asked = [f"{at:.1f} {token}" for at, token in zip(server.asked[name][-5:], sent, strict=True)]
        stored = self._execute(
            "SELECT generation, left(fingerprint, 6) FROM public.history WHERE name = %s ORDER BY generation DESC LIMIT 4",
            name,
        )
        logged = [
            f"{each.number}: {line[:300]}"
            for each in self._refreshers
            for line in each.log.read_text().splitlines()
            if f"{name}:" in line and "rotated (" not in line
        ]
        return "\n    ".join([f"sent {asked}, stored {stored}", *logged[-12:]])

    def _sent_twice(self) -> Iterator[str]:
        """Return each refresh token that was sent twice with its kill, and note those that nothing allows."""
        for server in self._servers:
            for name, sent in server.presented.items():
                first: dict[str, int] = {}
                for index, token in enumerate(sent):
                    before = first.setdefault(token, index)
                    if before == index:
                        continue
                    kill = self._killed.get(Secret(token).fingerprint())
                    at = server.asked[name]
                    # The access token that agents had was issued by the request before.
                    valid = before > 0 and at[index] < at[before - 1] + _LIFE
                    if kill is None:
                        self._violations.append(f"{name}: a refresh token was sent twice without a kill")
                    elif valid:
                        self._violations.append(f"I1: {name}: sent again while its access token was valid")
                    else:
                        yield f"{kill}, {at[index] - at[before]:.0f} s later"

    def _execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []


def _grant(stored: Stored | GrantFileError) -> Grant:
    assert isinstance(stored, Stored), stored
    assert isinstance(stored.record, Grant)
    return stored.record


def _is_dead(stored: Stored | GrantFileError) -> bool:
    return _grant(stored).dead


def busiest(server: TokenServer) -> int:
    """Return the most requests within one second."""
    times = sorted(at for asked in server.asked.values() for at in asked)
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def _last_line(log: Path) -> str:
    lines = log.read_text().splitlines()
    return lines[-1] if lines else "it logged nothing"


def _line_of(log: str) -> str:
    return next(line for line in log.splitlines() if "Traceback" in line or "internal error" in line)


def main(arguments: Sequence[str]) -> int:
    """Return 0 without violations, and else 1."""
    parser = argparse.ArgumentParser(description="Kill and pause refreshers that share a database, and count.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--grants", type=int, default=1000)
    parser.add_argument("--refreshers", type=int, default=8)
    options = parser.parse_args(arguments)
    with contextlib.suppress(OSError):
        os.nice(5)
    chaos = Chaos(
        options.seed, options.minutes * 60, grants=options.grants, refreshers=options.refreshers, hasten=False
    )
    found = chaos.run()
    sys.stdout.write(text(found) + "\n")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
