"""The rows of ``status --watch``: what is read, and when."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from refresher.common import clocks
from refresher.grants.record import Tombstone
from refresher.operations.grant_report import is_overdue
from refresher.operations.live_rows import LiveRows
from refresher.storage import records, stamps
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from tests.support.fake_state import directories, put
from tests.support.samples import grant


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """Directories with three grants that have not changed for a while."""
    made = directories(tmp_path)
    for name in ("linear", "notion", "slack"):
        put(made.record(name), grant(name=name))
    _age(made)
    return made


def _age(state: Directories) -> None:
    long_ago = time.time() - 60
    os.utime(state.grants, (long_ago, long_ago))


def test_only_what_has_changed_is_read(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a look at many grants would take a processor for itself."""
    read: list[str] = []
    listed: list[int] = []
    load, of_records = records.load, stamps.of_records

    def counted_load(directories: Directories, name: str) -> Any:
        read.append(name)
        return load(directories, name)

    def counted_list(directories: Directories) -> Any:
        listed.append(1)
        return of_records(directories)

    monkeypatch.setattr(records, "load", counted_load)
    monkeypatch.setattr(stamps, "of_records", counted_list)
    rows = LiveRows(FileStore(state))
    assert rows.refresh()
    assert (sorted(read), len(listed)) == (["linear", "notion", "slack"], 1)
    assert not any(rows.refresh() for _ in range(5))
    assert (len(read), len(listed)) == (3, 1), "nothing has changed, and it was read or listed again"

    fresh = state.grants / "new"
    put(fresh, grant(name="notion", generation=4))
    fresh.rename(state.record("notion"))
    assert rows.refresh()
    assert read[3:] == ["notion"]
    there = rows.by_name["notion"].grant
    assert there is not None
    assert there.generation == 4


def test_grants_that_are_removed_disappear(state: Directories) -> None:
    """If it failed, the picture would show grants that do not exist any more."""
    rows = LiveRows(FileStore(state), ["linear", "notion"])
    rows.refresh()
    assert set(rows.by_name) == {"linear", "notion"}
    state.record("linear").unlink()
    tombstone: dict[str, Any] = {"grant_id": "0123", "generation": 3, "begun_from": "", "removed_at": 0.0}
    stored = records.load(state, "notion")
    records.write(state, "notion", stored, Tombstone(name="notion", scope=None, origins=(), **tombstone))
    assert rows.refresh()
    assert rows.by_name == {}


def test_a_grant_that_a_running_service_does_not_rotate_is_overdue() -> None:
    """If it failed, a key or a disk that is away while a service runs would end logins unseen."""
    now = clocks.now().wall
    times = [
        {"issued_at": now - 3600 - ago, "last_rotation_at": now - 3600 - ago, "expires_at": now - ago}
        for ago in (30, 300)
    ]
    expired = [grant(issued=None, **each) for each in times]
    assert [is_overdue(each, late=False) for each in expired] == [False, True]
