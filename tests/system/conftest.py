"""Fixtures of several modules of system tests."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

import shim.httpx
import shim.httpx2
from tests.support.command import Command
from tests.support.stage import Stage

LIBRARIES = {"httpx": (httpx, shim.httpx.BearerAuth), "httpx2": (httpx2, shim.httpx2.BearerAuth)}


@pytest.fixture
def stage() -> Iterator[Stage]:
    """An MCP server for one test, which accepts the first token."""
    with Stage(json_response=True) as made:
        made.play(tokens=["access-token-1"])
        yield made


@pytest.fixture
def daemon(refresher: Command) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start daemons; at the end each is stopped and must exit with 0."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, **more: Any) -> subprocess.Popen[str]:
        running.append(refresher.start(*options, "run", **more))
        return running[-1]

    yield start
    for process in running:
        if process.returncode is None:
            process.terminate()
            done = refresher.finish(process)
            assert done.code == 0, done.stderr


@pytest.fixture(params=sorted(LIBRARIES))
def library(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The HTTP library and its ``BearerAuth``."""
    return LIBRARIES[request.param]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A directory for temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir(mode=0o700)
    return directory
