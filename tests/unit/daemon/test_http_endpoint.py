"""The endpoint: where it serves, and when it loads the server."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from refresher.config import Settings, resolve
from refresher.daemon import http_endpoint
from refresher.daemon.http_endpoint import HTTPEndpoint
from refresher.daemon.readiness import Readiness
from tests.support.command import wait_until


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with an address that any program may have."""
    made = resolve({"state_dir": str(tmp_path / "state"), "listen": "127.0.0.1:0"}, None)
    made.directories.prepare()
    return made


@pytest.fixture
def endpoint() -> Iterator[HTTPEndpoint]:
    """An endpoint that serves nothing yet."""
    made = HTTPEndpoint(lambda: Readiness().health(live=True))
    yield made
    made.close()
    if (served := made._served) is not None:
        served.listener.close()
    if made._private is not None:
        made._private[1].close()


def test_no_command_loads_the_server_before_rotations_begin() -> None:
    """If it failed, each run from cron would load a server that it does not need, and a start would take longer."""
    code = "import sys, refresher.cli.run, refresher.daemon.loop; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "refresher.daemon.http_endpoint" in loaded
    assert not {"uvicorn", "starlette"} & set(loaded)


def test_the_endpoint_serves_once_rotations_have_begun(
    settings: Settings, endpoint: HTTPEndpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, the start of the server would delay the first rotations."""
    monkeypatch.setattr(http_endpoint, "_LONGEST_START", 1000.0)
    with caplog.at_level("INFO", logger="refresher"):
        endpoint.use(settings)
        assert (endpoint.listening(), settings.directories.health_socket.exists()) == (None, False)
        endpoint.begin()
        wait_until(lambda: endpoint.listening() is True, "it serves")
        wait_until(lambda: any("/healthz" in each for each in caplog.messages), "it says where")
    (line,) = [each for each in caplog.messages if "/healthz" in each]
    assert line.endswith("/") == line.startswith("serving http://127.0.0.1:")
    assert httpx.get(line.split()[-1], trust_env=False, timeout=60).status_code == 200


def test_the_endpoint_waits_for_a_thread(
    settings: Settings, endpoint: HTTPEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, refresher would not rotate where it cannot start the thread of its pages, or never serve them."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        endpoint.use(settings)
        endpoint.begin()
    assert endpoint.listening() is None
    endpoint.begin()
    wait_until(lambda: endpoint.listening() is True, "it serves")


def test_the_endpoint_serves_a_daemon_that_never_begins(
    settings: Settings, endpoint: HTTPEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a daemon that hangs at its start would answer no probe, and nobody would restart it."""
    monkeypatch.setattr(http_endpoint, "_LONGEST_START", 0.01)
    endpoint.use(settings)
    wait_until(lambda: endpoint.listening() is True, "it serves")
