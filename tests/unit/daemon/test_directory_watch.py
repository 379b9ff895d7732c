"""The directory watch finds the grants whose files have changed."""

import errno
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from refresher.common.errors import DirectoryError
from refresher.daemon import directory_watch
from refresher.daemon.directory_watch import FULL_SCAN_INTERVAL, DirectoryWatch
from refresher.grants.record import NO_RECORD, Stored
from refresher.storage import records, stamps
from refresher.storage.directories import Directories
from tests.support.samples import grant


@pytest.fixture(params=["reported", "polled"], autouse=True)
def is_reported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether Linux reports the changes: each test runs with these reports and without."""
    if request.param == "polled":
        # A fake of the limit of a user, which is too high to be reached here.
        monkeypatch.setattr(directory_watch, "Inotify", _refuse)
    return request.param == "reported" and sys.platform == "linux"


def _refuse(directories: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


def _settled(directories: Directories) -> DirectoryWatch:
    """Return a watch that knows what is there, after the last change has become old."""
    watch = DirectoryWatch(directories)
    watch.changed()
    age(directories)
    watch.changed()
    return watch


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


def _publish_again(directories: Directories) -> None:
    directories.token("notion").with_name(".linear.json.new").write_text("{}")
    directories.token("notion").with_name(".linear.json.new").rename(directories.token("linear"))


_CHANGES = (_replace, _remove, _demand, _create_an_intent, _publish, _publish_again)


@pytest.mark.parametrize("change", _CHANGES)
def test_a_change_is_reported_for_its_grant_only(
    directories: Directories, change: Callable[[Directories], None]
) -> None:
    """If it failed, the daemon would miss the change, or inspect every grant whenever one changes."""
    watch = _settled(directories)
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
    watch = _settled(directories)
    watch.forget("linear")
    assert watch.changed() == {"linear"}


def test_nothing_is_listed_while_no_directory_changes(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, ten thousand idle grants would use a whole processor."""
    watch = _settled(directories)
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
    directories: Directories, monkeypatch: pytest.MonkeyPatch, is_reported: bool
) -> None:
    """If it failed, a file changed in place, or due grants after a suspend, would be missed."""
    watch = _settled(directories)
    with directories.record("linear").open("ab") as file:
        file.write(b" ")
    if is_reported:
        assert watch.changed() == {"linear"}
        # A change that Linux does not report: that of another machine, or through a memory map.
        assert watch._inotify is not None
        directories.record("linear").chmod(0o640)
        watch._inotify.read()
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


def _edit(directories: Directories, name: str) -> None:
    with directories.record(name).open("ab") as file:
        file.write(b" ")


def _expose(directories: Directories, name: str) -> None:
    directories.record(name).chmod(0o644)


def _cut_the_token(directories: Directories, name: str) -> None:
    os.truncate(directories.token(name), 0)


@pytest.mark.parametrize("change", [_edit, _expose, _cut_the_token])
def test_a_change_in_place_is_seen_at_once_where_linux_reports_it(
    directories: Directories, change: Callable[[Directories, str], None], is_reported: bool
) -> None:
    """If it failed, an edit by hand would count only after half a minute."""
    directories.token("notion").write_text("{}")
    watch = _settled(directories)
    change(directories, "notion")
    assert watch.changed() == ({"notion"} if is_reported else set())


def test_reports_that_were_lost_cost_a_listing_and_nothing_else(
    directories: Directories, monkeypatch: pytest.MonkeyPatch, is_reported: bool
) -> None:
    """If it failed, many changes at once could hide one of them for half a minute."""
    watch = DirectoryWatch(directories)
    watch.changed()
    for number in range(3):
        _replace(directories)
        if is_reported:
            assert watch._inotify is not None
            # First as if the reports were missing, then as if the kernel said that there were too many.
            monkeypatch.setattr(watch._inotify, "read", lambda lost=(set(), None, set())[number]: lost)
        assert watch.changed() == {"linear"}
        assert watch.changed() == set()


def test_one_change_costs_the_same_among_any_number_of_grants(
    directories: Directories, monkeypatch: pytest.MonkeyPatch, is_reported: bool
) -> None:
    """If it failed, a daemon with 100,000 grants would list all of them after each rotation."""
    watch = _settled(directories)
    listed: list[object] = []
    found = stamps.find_all

    def find_all(of: Directories) -> object:
        listed.append(of)
        return found(of)

    monkeypatch.setattr(stamps, "find_all", find_all)
    for change in (_create_an_intent, _replace, _publish_again):
        change(directories)
        assert watch.changed() == {"linear"}
    assert not listed if is_reported else listed


@pytest.mark.parametrize("seed", range(5))
def test_no_sequence_of_changes_hides_one(directories: Directories, seed: int) -> None:
    """If it failed, the daemon would act on what it knew before, until the next check of everything."""
    watch = DirectoryWatch(directories)
    chosen = random.Random(seed)
    known: dict[str, object] = {}
    for _ in range(60):
        name = chosen.choice(("linear", "notion", "third"))
        paths = [
            directories.record(name),
            directories.token(name),
            directories.demands / f"{name}.3",
            directories.intent(name),
            directories.next(name),
        ]
        for path in chosen.sample(paths, chosen.randrange(3)):
            if path.exists():
                path.unlink()
            else:
                path.with_name(f".{path.name}").write_text("x" * chosen.randrange(9))
                path.with_name(f".{path.name}").rename(path)
        changed = watch.changed()
        for each in ("linear", "notion", "third"):
            unfinished = directories.intent(each).exists() or directories.next(each).exists()
            there = directories.record(each).exists() or unfinished
            read = (directories.record(each), directories.token(each)) if directories.record(each).exists() else ()
            # The number of the file: within one tick, another may have the same size and time.
            state = [
                unfinished,
                (directories.demands / f"{each}.3").exists(),
                [path.stat().st_ino if path.exists() else None for path in read],
            ]
            assert (each in watch.names) == there
            assert (each in watch.listing.unfinished) == unfinished
            assert each in changed or not there or known.get(each) == state
            known[each] = state if there else None
