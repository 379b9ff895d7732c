"""The directory watch finds the grants whose files have changed."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from refresher.common.errors import DirectoryError
from refresher.daemon.directory_watch import FULL_SCAN_INTERVAL, DirectoryWatch
from refresher.grants.record import NO_RECORD, Stored
from refresher.storage import records
from refresher.storage.directories import Directories
from tests.support.samples import grant


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    """Directories with the grants ``linear`` and ``notion``."""
    made = Directories(
        state=tmp_path / "state",
        tokens=tmp_path / "tokens",
        demands=tmp_path / "demands",
        spill=tmp_path / "spill",
    )
    made.prepare()
    for name in ("linear", "notion"):
        records.write(made, name, Stored(None, NO_RECORD), grant(name=name))
    return made


def age(directories: Directories) -> None:
    """Set the times of the directories to a minute ago."""
    for directory in (directories.grants, directories.tokens, directories.demands):
        os.utime(directory, (time.time() - 60, time.time() - 60))


def test_every_grant_is_changed_at_first_and_none_after_that(directories: Directories) -> None:
    """If it failed, a daemon would miss grants, or inspect all of them at each scan."""
    watch = DirectoryWatch(directories)
    assert watch.changed() == {"linear", "notion"}
    assert watch.changed() == set()
    assert sorted(watch.listing.all) == ["linear", "notion"]


def _replace(directories: Directories) -> None:
    records.write(directories, "linear", Stored(None, NO_RECORD), grant(generation=9))


def _remove(directories: Directories) -> None:
    directories.record("linear").unlink()


def _demand(directories: Directories) -> None:
    (directories.demands / "linear.3").touch()


def _create_an_intent(directories: Directories) -> None:
    directories.intent("linear").touch()


def _publish(directories: Directories) -> None:
    directories.token("linear").write_text("{}")


@pytest.mark.parametrize("change", [_replace, _remove, _demand, _create_an_intent, _publish])
def test_a_change_is_reported_for_its_grant_only(
    directories: Directories, change: Callable[[Directories], None]
) -> None:
    """If it failed, the daemon would miss the change, or inspect every grant whenever one changes."""
    watch = DirectoryWatch(directories)
    watch.changed()
    age(directories)
    watch.changed()
    change(directories)
    assert watch.changed() == {"linear"}
    assert watch.changed() == set()


def test_a_second_change_with_the_same_time_stamp_is_found(directories: Directories) -> None:
    """If it failed, an import right after another change would be missed for half a minute."""
    watch = DirectoryWatch(directories)
    _replace(directories)
    watch.changed()
    before = directories.grants.stat()
    records.write(directories, "another", Stored(None, NO_RECORD), grant(name="another"))
    # As on a file system with a coarse clock: the time of the directory stays the same.
    os.utime(directories.grants, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watch.changed() == {"another"}


def test_a_forgotten_name_counts_as_changed(directories: Directories) -> None:
    """If it failed, a grant would not be inspected after its rotation."""
    watch = DirectoryWatch(directories)
    watch.changed()
    age(directories)
    watch.changed()
    watch.forget("linear")
    assert watch.changed() == {"linear"}


def test_nothing_is_listed_while_no_directory_changes(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, ten thousand idle grants would use a whole processor."""
    watch = DirectoryWatch(directories)
    watch.changed()
    age(directories)
    watch.changed()
    listed: list[object] = []

    def listdir(path: object) -> list[str]:
        listed.append(path)
        return []

    # A fake that counts the calls.
    monkeypatch.setattr(os, "listdir", listdir)
    for _ in range(10):
        assert watch.changed() == set()
    assert listed == []


def test_every_file_is_checked_from_time_to_time_and_every_name_after_a_clock_was_set(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a file changed in place, or due grants after a suspend, would be missed."""
    watch = DirectoryWatch(directories)
    watch.changed()
    age(directories)
    watch.changed()
    with directories.record("linear").open("ab") as file:
        file.write(b" ")
    assert watch.changed() == set(), "no directory has changed"
    # Fakes, because a test cannot set the real clocks.
    monotonic, wall = time.monotonic, time.time
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + FULL_SCAN_INTERVAL)
    monkeypatch.setattr(time, "time", lambda: wall() + FULL_SCAN_INTERVAL)
    assert watch.changed() == {"linear"}
    for offset in (7200.0, -7200.0):
        monkeypatch.setattr(time, "time", partial(_moved, wall, FULL_SCAN_INTERVAL + offset))
        assert watch.changed() == {"linear", "notion"}
        assert watch.changed() == set()


def _moved(clock: Callable[[], float], by: float) -> float:
    return clock() + by


def test_files_that_do_not_belong_to_a_grant_are_ignored(directories: Directories) -> None:
    """If it failed, a stray file would be treated as a grant, or would end the daemon."""
    for stray in ("UPPER.json", "a b.json", ".hidden.json", "notes.txt"):
        (directories.grants / stray).touch()
    (directories.demands / "nobody.1").touch()
    (directories.demands / "linear.x").mkdir()
    assert DirectoryWatch(directories).changed() == {"linear", "notion"}


def test_a_grants_directory_that_others_can_read_is_an_error_until_it_is_repaired(directories: Directories) -> None:
    """If it failed, the daemon would write refresh tokens where others can read them."""
    watch = DirectoryWatch(directories)
    watch.changed()
    directories.grants.chmod(0o755)
    for _ in range(2):
        with pytest.raises(DirectoryError, match="chmod 700"):
            watch.changed()
    directories.grants.chmod(0o700)
    # Grants may have become due meanwhile.
    assert watch.changed() == {"linear", "notion"}
