"""Homes with any number of grants: the files of an import, written without one."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from refresher.common import clocks
from refresher.common.secret import Secret
from refresher.config import resolve
from refresher.grants.encoding import encode
from refresher.grants.record import Grant
from refresher.grants.token_file import derive
from tests.bench.measuring import Cost, Run, cost
from tests.support.notified import Notified
from tests.support.samples import grant

__all__ = ["LIFE", "Daemon", "Home", "new_grants", "no_endpoint", "shared"]

LIFE: Final = 36_000.0
"""Seconds for which an access token is valid that is not due during a measurement."""

_LONGEST: Final = 600.0


def no_endpoint(number: int) -> str:
    """Return the token endpoint of a grant whose rotation is not due: one of fifty servers that do not exist."""
    return f"https://as{number % 50}.example/token"


def new_grants(
    count: int,
    *,
    prefix: str = "grant",
    endpoint: Callable[[int], str] = no_endpoint,
    life: Callable[[int], float] = lambda _: LIFE,
    age: Callable[[int], float] = lambda _: 0.0,
    origin: str = "https://mcp.example",
) -> Iterator[Grant]:
    """Yield grants as after an import; ``age``: the seconds since the access token of each was issued.

    The id of the client ends with the lifetime that ``tests.bench.server`` gives to the next tokens.
    """
    now = clocks.now()
    for number in range(count):
        name, issued = f"{prefix}-{number}", now.wall - age(number)
        yield grant(
            name=name,
            grant_id=uuid.uuid4().hex,
            generation=1,
            token_endpoint=endpoint(number),
            client_id=f"{name}/{life(number):g}",
            refresh_token=Secret(f"refresh-token-of-{name}"),
            access_token=Secret(f"access-token-of-{name}"),
            origins=(origin,),
            server_url=f"{origin}/mcp",
            issued_at=issued,
            expires_at=issued + life(number),
            authorized_at=issued,
            last_rotation_at=None,
        )


class Daemon(NamedTuple):
    """A running ``refresher run``; ``ready``: the seconds until it was."""

    pid: int
    ready: float


class Home:
    """A home directory; each test of the command in it uses a new process. ``key``: where a key to seal with is from."""

    def __init__(self, path: Path, grants: Iterable[Grant] = (), *, key: str | None = None) -> None:
        path.mkdir(mode=0o700, parents=True)
        self.path: Final = path
        self.environment: Final = {
            "HOME": str(path),
            "PATH": os.environ["PATH"],
            "REFRESHER_SPILL_DIR": str(path / "spill"),
            "REFRESHER_ENCRYPTION_KEY": key or "",
        }
        state = str(path / ".local/state/refresher")
        given = {"state_dir": state, "spill_dir": str(path / "spill"), "encryption_key": key}
        self.directories: Final = resolve(given, None).directories
        self.directories.prepare()
        self.add(grants)

    def add(self, grants: Iterable[Grant]) -> None:
        """Write the record, the lock and the token file of each grant, without a sync for each."""
        for each in grants:
            _write(self.directories.record(each.name), encode(each, self.directories.keys)[0])
            _write(self.directories.lock(each.name), b"")
            _write(self.directories.token(each.name), derive(each) or b"")
        os.sync()  # so that the kernel does not write them during a measurement

    def refresher(self, *arguments: str) -> Cost:
        """Run the command."""
        return cost(sys.executable, "-m", "refresher", *arguments, environment=self.environment, directory=self.path)

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        """Run the daemon, and wait until it is ready."""
        with Notified(f"@bench-{uuid.uuid4().hex}") as systemd, (self.path / "log").open("a") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "refresher", "run"],
                env=self.environment | systemd.environment,
                cwd=self.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                systemd.until("READY", longest=_LONGEST)
                yield Daemon(process.pid, time.perf_counter() - began)
            finally:
                process.terminate()
                process.wait(_LONGEST)


@cache
def shared(run: Run, count: int) -> Home:
    """Return the home of a run with so many grants; none is due."""
    run.say(f"writing {count:,} grants")
    return Home(run.root / f"grants-{count}", new_grants(count))


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(descriptor, data)
    os.close(descriptor)
