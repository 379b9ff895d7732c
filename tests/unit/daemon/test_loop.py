"""What the daemon does about what should not happen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.common.signals import Listening
from refresher.config import Settings, resolve
from refresher.daemon.loop import Daemon, _Pause
from refresher.grants.record import Stored
from refresher.operations.import_grant import admit
from refresher.operations.import_request import parse
from refresher.storage import records
from refresher.storage.directories import Directories


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with one grant, good for an hour."""
    made = resolve({"state_dir": str(tmp_path / "state")}, None)
    fields = {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": "a-refresh-token-of-nobody",
        "server_url": "https://mcp.example/mcp",
        "access_token": "an-access-token-of-nobody",
        "expires_in": 3600,
    }
    grant = parse("linear", json.dumps(fields).encode(), clocks.now())
    admit(made.directories, grant, replace=False, if_absent=False, stopping=lambda: False)
    return made


@pytest.fixture
def daemon(settings: Settings) -> Iterator[Daemon]:
    """A daemon whose parts are called one by one."""
    made = Daemon(lambda: settings, Listening(), grace=25.0)
    made._timetable.start()
    yield made
    made._timetable.stop()


def test_a_pause_grows_and_stays_a_pause_for_ever() -> None:
    """If it failed, a grant that cannot be helped for a night would end the daemon with an overflow."""
    pause = _Pause.after(None)
    assert pause.times == 1
    for _ in range(5000):
        pause = _Pause.after(pause)
    assert pause.times == 5001


def test_a_grant_that_could_not_be_read_once_is_looked_at_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, one error of a disk at the wrong instant would cost a grant all its rotations."""
    # A fake: an error that leaves no trace in what the directory shows.
    daemon._look_around()
    (before,) = daemon._timetable._scheduler.get_jobs()

    def broken(directories: Directories, name: str) -> Stored:
        raise GrantFileError("cannot read it: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(records, "load", broken)
        daemon._look("linear")
    (after,) = daemon._timetable._scheduler.get_jobs()
    assert after.next_run_time < before.next_run_time
    daemon._look("linear")
    (healed,) = daemon._timetable._scheduler.get_jobs()
    assert healed.next_run_time == before.next_run_time


def test_a_fault_of_ours_does_not_end_the_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, an oversight in one line would end the rotation of every grant."""
    # A fake: it stands for whatever we have not thought of.
    monkeypatch.setattr(daemon._watch, "changed", lambda: 1 / 0)
    daemon._turn()
    monkeypatch.undo()
    daemon._look_around_at = 0.0
    daemon._turn()
    assert daemon._timetable._scheduler.get_jobs()
