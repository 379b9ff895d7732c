"""A daemon under test: starts and stops it, and reads its state."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.command import LONGEST, Command, wait_until
from tests.support.oidc import OIDC

__all__ = ["heard", "in_mid_exchange", "published", "running", "stopped", "under_way"]


def published(refresher: Command, name: str = "linear") -> int:
    """Return the published generation, -1 if there is none."""
    try:
        return refresher.token(name).generation
    except FileNotFoundError:
        return -1


@contextmanager
def running(
    refresher: Command, *arguments: str, options: tuple[str, ...] = (), **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon, which is killed if the test fails; ``options`` precede ``run``, ``arguments`` follow it."""
    process = refresher.start(*options, "run", *arguments, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stopped(refresher: Command, process: subprocess.Popen[str]) -> str:
    """Stop a daemon, check its exit code, and return its log."""
    process.terminate()
    done = refresher.finish(process)
    assert done.code == 0, done.stderr
    return done.stderr


def under_way(refresher: Command, name: str = "linear") -> bool:
    """Whether an attempt has written its intent and sent its request."""
    intent = refresher.state / f"grants/{name}.intent"
    return intent.exists() and intent.read_bytes().endswith(b"+")


def heard(process: subprocess.Popen[str], words: str) -> list[str]:
    """Return the lines of a process on stderr, up to the one with ``words``."""
    assert process.stderr is not None
    lines: list[str] = []
    # Only the end of the process can interrupt the read.
    timer = threading.Timer(LONGEST, process.kill)
    timer.start()
    try:
        while not lines or words not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], f"the process ended without {words!r}: {lines}"
    finally:
        timer.cancel()
    return lines


def in_mid_exchange(refresher: Command, server: OIDC, **script: Any) -> None:
    """Start an exchange, and wait until the server has the request; it answers after ``server.release()``."""
    before = len(server.requests())
    server.script(hold=True, **script)
    (refresher.state / f"demands/linear.{published(refresher)}").touch()
    wait_until(lambda: len(server.requests()) > before and under_way(refresher), "an exchange is under way")
