"""Fixtures for all tests."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import oidc as oidc_module
from tests.support import scheduler, warm
from tests.support.command import Command
from tests.support.oidc import OIDC
from tests.support.postgres import FAST, Cluster, find_binaries, running
from tests.support.site import Site, opened
from tests.support.vault import Vault

# No deadline, because a machine may be slow. The same examples each time, so that a change does not fail because of new
# examples; `--hypothesis-profile=long` runs more examples, and new ones each time.
settings.register_profile("short", deadline=None, max_examples=200, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("short")

_SESSION_SECRETS = Vault()

# A process in the background of a shell ignores SIGINT, one of nohup SIGHUP, and children inherit that. A handler that
# does nothing ignores the signal as well, but is not inherited.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def need(part: str | None) -> None:
    """Skip a test if a part is missing, with the reason; in CI, where it can be installed, fail."""
    if part is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI everything is installed: {part}")
        pytest.skip(part)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """The secrets of a test; at its end, no file may contain one except where it is allowed."""
    yield _SESSION_SECRETS
    leaks = _SESSION_SECRETS.leaks_below(tmp_path)
    assert not leaks, f"files contain secrets: {leaks}"


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
    """The command in an empty home, with a new interpreter each time: for tests of the start."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Command(home, vault, cold=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduler.Scheduler:
    return scheduler.Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests first, where several processes share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not scheduler.is_long(item.nodeid))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests for the last line of ``tests/run``."""
    if counts := os.environ.get("TEST_COUNTS"):
        found = {word: len(terminalreporter.stats.get(word, ())) for word in ("passed", "failed", "error", "skipped")}
        Path(counts).write_text(", ".join(f"{number} {word}" for word, number in found.items() if number))


def pytest_sessionfinish() -> None:
    """End the shared processes of this test process."""
    oidc_module.close()
    warm.close()


@pytest.fixture(scope="session")
def oidc() -> Iterator[OIDC]:
    """One authorization server for all tests that do not change it; access tokens live for an hour."""
    need(oidc_module.missing())
    with OIDC(_SESSION_SECRETS) as server:
        yield server


@pytest.fixture
def own_oidc() -> Iterator[Callable[..., OIDC]]:
    """Authorization servers for one test, which counts their requests or scripts their answers."""
    need(oidc_module.missing())
    running: list[OIDC] = []

    def start(**config: Any) -> OIDC:
        running.append(OIDC(_SESSION_SECRETS, **config))
        return running[-1]

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL for the tests of one process."""
    need(None if find_binaries() else "PostgreSQL is not installed: apt-get install postgresql")
    with running(*FAST) as cluster:
        yield cluster


@pytest.fixture
def site(tmp_path: Path, postgres: Cluster, vault: Vault) -> Iterator[Site]:
    """A database, and the command on any number of hosts."""
    with opened(tmp_path, postgres, vault) as made:
        yield made
