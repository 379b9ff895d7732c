"""A daemon under test: started and certainly ended, and where it stands."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.command import LONGEST, Command, wait_until
from tests.support.oidc import OIDC

__all__ = ["heard", "in_mid_exchange", "published", "running", "stopped", "under_way"]


def published(refresher: Command, name: str = "linear") -> int:
    """Return the published generation, -1 where there is none."""
    try:
        return refresher.token(name).generation
    except FileNotFoundError:
        return -1


@contextmanager
def running(
    refresher: Command, *arguments: str, options: tuple[str, ...] = (), **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """A daemon that is killed if the test fails; ``options`` go before ``run``, ``arguments`` behind it."""
    process = refresher.start(*options, "run", *arguments, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stopped(refresher: Command, process: subprocess.Popen[str]) -> str:
    """Stop a daemon, which must come to a good end; return what it has said."""
    process.terminate()
    done = refresher.finish(process)
    assert done.code == 0, done.stderr
    return done.stderr


def under_way(refresher: Command, name: str = "linear") -> bool:
    """Whether an attempt has declared itself and sent its request."""
    intent = refresher.state / f"grants/{name}.intent"
    return intent.exists() and intent.read_bytes().endswith(b"+")


def heard(process: subprocess.Popen[str], words: str) -> list[str]:
    """Return what a process says on stderr, up to the line with ``words``."""
    assert process.stderr is not None
    said: list[str] = []
    # Nothing else can end a read of what a living process does not say.
    patience = threading.Timer(LONGEST, process.kill)
    patience.start()
    try:
        while not said or words not in said[-1]:
            said.append(process.stderr.readline())
            assert said[-1], f"it ended without {words!r}: {said}"
    finally:
        patience.cancel()
    return said


def in_mid_exchange(refresher: Command, server: OIDC, **script: Any) -> None:
    """Begin an exchange, and wait until the server has it; it answers once it is released."""
    before = len(server.requests())
    server.script(hold=True, **script)
    (refresher.state / f"demands/linear.{published(refresher)}").touch()
    wait_until(lambda: len(server.requests()) > before and under_way(refresher), "an exchange is under way")
