"""What every test can ask for."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import oidc as oidc_module
from tests.support import warm
from tests.support.command import Command
from tests.support.oidc import OIDC
from tests.support.vault import Vault

# No deadline: a slow machine is no failure. The same examples each time, so that nobody's change is blamed for what an
# unlucky draw finds; `--hypothesis-profile=long` looks further, and elsewhere each time.
settings.register_profile("short", deadline=None, max_examples=200, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("short")

_SESSION_SECRETS = Vault()

# What a shell starts in the background ignores Ctrl-C, what nohup starts SIGHUP, and so would all that the tests start.
# A handler of ours ignores it as well, and is not inherited.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def need(part: str | None) -> None:
    """Skip where a part cannot be had, with the reason; in CI, where it can be installed, fail."""
    if part is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI everything is installed: {part}")
        pytest.skip(part)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """The secrets of a test; at its end no file outside their places may hold one."""
    yield _SESSION_SECRETS
    leaks = _SESSION_SECRETS.leaks_below(tmp_path)
    assert not leaks, f"secrets lie about: {leaks}"


@pytest.fixture
def refresher(tmp_path: Path, vault: Vault) -> Command:
    """The command, in an empty home."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Command(home, vault)


@pytest.fixture
def quick(refresher: Command) -> Command:
    return refresher


@pytest.fixture
def cold(tmp_path: Path, vault: Vault) -> Command:
    """The command, in an empty home, with a start of the interpreter each time: for tests of the start."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Command(home, vault, cold=True)


def pytest_sessionfinish() -> None:
    """End what the tests of this process share."""
    oidc_module.close()
    warm.close()


@pytest.fixture(scope="session")
def oidc() -> Iterator[OIDC]:
    """One authorization server for the tests that leave it as it was; access tokens of an hour."""
    need(oidc_module.missing())
    with OIDC(_SESSION_SECRETS) as server:
        yield server


@pytest.fixture
def own_oidc() -> Iterator[Callable[..., OIDC]]:
    """Authorization servers for one test alone: to count on, or to script."""
    need(oidc_module.missing())
    running: list[OIDC] = []

    def start(**config: Any) -> OIDC:
        running.append(OIDC(_SESSION_SECRETS, **config))
        return running[-1]

    yield start
    for server in running:
        server.__exit__(None, None, None)
