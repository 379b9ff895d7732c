"""How soon is a rotation on one host published on another, by way of PostgreSQL?"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from refresher.operations.import_grant import store_grant
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.postgres import migrations
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.publishing import read_published
from tests.bench.homes import Home, new_grants
from tests.bench.measuring import CannotRun, Run, percentile
from tests.bench.server import Server
from tests.support import postgres

__all__ = ["measure"]

_TERMS: Final = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0)
_GRANTS: Final = 10
_LONGEST: Final = 60.0
_LOOK: Final = 0.001


def measure(run: Run) -> None:
    """Rotate here, and wait for each new token file here and on another host."""
    if postgres.find_binaries() is None:
        raise CannotRun("PostgreSQL is not installed")
    own, other = Home(run.root / "mirror-own"), Home(run.root / "mirror-other")
    with Server() as server, postgres.running() as cluster:
        store = PostgresStore(cluster.url(), own.directories)
        migrations.migrate(store.database)
        store.prepare()
        for grant in new_grants(_GRANTS, endpoint=server.endpoint):
            store_grant(store, grant, replace=False, if_absent=False, stopping=lambda: False)
        count = run.count(300)
        run.say(f"{count} rotations, each published on two hosts")
        times: list[tuple[float, float]] = []
        with _mirror(other, cluster.url()):
            _wait(other, f"grant-{_GRANTS - 1}", 0)
            moments = random.Random(7)
            for number in range(count):
                # So that a rotation comes at any time between two polls.
                time.sleep(moments.uniform(0, 0.6))
                name = f"grant-{number % _GRANTS}"
                seen = 1 + number // _GRANTS
                result = rotate(store, Order(name=name, seen=seen, force=True), _TERMS)
                if result is None or result.outcome != "rotated":
                    raise CannotRun(f"a rotation ended with {result}")
                here = time.monotonic()
                token = read_published(own.directories, name)
                there = _wait(other, name, -1 if token is None else token.generation)
                answered = server.log()[-1].answered
                times.append((1000 * (there - answered), 1000 * (here - answered)))
        store.close()
    there_all, here_all = [there for there, _ in times], [here for _, here in times]
    for place in (50, 99):
        run.note(f"mirror.p{place}", [(percentile(there_all, place), percentile(here_all, place))])
    run.results.notes.append(
        f"{count} rotations: each was published on another host within {max(there_all):.0f} ms of its answer"
    )


def _wait(home: Home, name: str, generation: int) -> float:
    """Return when the token file of ``name`` had that generation."""
    end = time.monotonic() + _LONGEST
    while time.monotonic() < end:
        token = read_published(home.directories, name)
        now = time.monotonic()
        if token is not None and token.generation >= generation:
            return now
        time.sleep(_LOOK)
    raise CannotRun(f"generation {generation} of {name} was not published on the other host")


@contextmanager
def _mirror(home: Home, url: str) -> Iterator[None]:
    with (home.path / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "refresher", "mirror"],
            env=home.environment | {"REFRESHER_STORE": url},
            cwd=home.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(_LONGEST)
