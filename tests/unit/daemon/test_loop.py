"""The daemon loop after errors that should not happen."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.common.signals import DaemonSignals
from refresher.config import Settings, resolve
from refresher.daemon.loop import Daemon, _Pause
from refresher.grants.policy import Wait
from refresher.grants.record import Grant, Stored
from refresher.observers.hub import Observers
from refresher.operations.import_grant import store_grant
from refresher.operations.import_request import parse
from refresher.storage import records
from refresher.storage.directories import Directories


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with one grant whose access token is valid for an hour."""
    made = resolve({"state_dir": str(tmp_path / "state")}, None)
    _store(made, "linear")
    return made


def _store(settings: Settings, name: str) -> None:
    fields = {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": f"the-refresh-token-of-{name}",
        "server_url": "https://mcp.example/mcp",
        "access_token": f"the-access-token-of-{name}",
        "expires_in": 3600,
    }
    grant = parse(name, json.dumps(fields).encode(), clocks.now())
    store_grant(settings.open_store(), grant, replace=False, if_absent=False, stopping=lambda: False)


@pytest.fixture
def daemon(settings: Settings) -> Iterator[Daemon]:
    """A daemon whose methods the test calls one by one."""
    made = Daemon(lambda: settings, DaemonSignals(), Observers("run", settings), grace=25.0)
    made._schedule.start()
    yield made
    made._schedule.stop()


def test_a_pause_doubles_without_an_overflow() -> None:
    """If it failed, a grant that fails all night would end the daemon with an overflow."""
    pause = _Pause.after(None, fault=True)
    assert pause.times == 1
    for _ in range(5000):
        pause = _Pause.after(pause, fault=True)
    assert pause.times == 5001


def test_a_pause_lasts_from_one_second_to_half_a_minute() -> None:
    """If it failed, a full disk or a lock of another process would keep the daemon busy with vain attempts."""
    pause = None
    for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        before = time.monotonic()
        pause = _Pause.after(pause, fault=True)
        assert before + seconds <= pause.until <= time.monotonic() + seconds


def test_a_grant_that_could_not_be_read_is_inspected_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, one disk error at the wrong time would end the rotation of a grant."""
    # A fake: a disk error that changes no file.
    daemon._scan()
    before = daemon._schedule.planned_for("linear")

    def broken(directories: Directories, name: str) -> Stored:
        raise GrantFileError("cannot read it: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(records, "load", broken)
        daemon._inspect("linear")
    after = daemon._schedule.planned_for("linear")
    assert before is not None
    assert after is not None
    assert after < before
    daemon._inspect("linear")
    assert daemon._schedule.planned_for("linear") == before


def test_an_internal_error_does_not_end_the_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a bug in one line would end the rotation of every grant."""
    # A fake: it stands for any bug.
    monkeypatch.setattr(daemon._watch, "changed", lambda: 1 / 0)
    daemon._step()
    monkeypatch.undo()
    daemon._scan_at = 0.0
    daemon._step()
    assert daemon._schedule.planned_for("linear") is not None


def test_an_internal_error_in_one_grant_stops_no_other(
    daemon: Daemon, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a bug that concerns one grant would end the rotation of those that are due with it."""
    _store(settings, "notion")
    daemon._scan()
    wait = daemon._wait

    def broken(grant: Grant, rest: Wait) -> None:
        if grant.name == "linear":
            raise ZeroDivisionError
        wait(grant, rest)

    # A fake: it stands for any bug.
    monkeypatch.setattr(daemon, "_wait", broken)
    for name in ("linear", "notion"):
        daemon._schedule.plan(name, 0.0)
    daemon._process_due()
    assert daemon._schedule.planned_for("linear") is not None
    assert daemon._schedule.planned_for("notion") is not None
