"""Noticing what is new in the three directories."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from refresher.common.errors import DirectoryError
from refresher.daemon.watch import LOOK_AT_LEAST, Watch
from refresher.grants.record import NOTHING, Stored
from refresher.storage.directories import Directories
from refresher.storage.journal import write_record
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
    made.ensure()
    for name in ("linear", "notion"):
        write_record(made, name, Stored(None, NOTHING), grant(name=name))
    return made


def age(directories: Directories) -> None:
    """Make the directories look as if nothing had happened for a minute."""
    for directory in (directories.grants, directories.tokens, directories.demands):
        os.utime(directory, (time.time() - 60, time.time() - 60))


def test_everything_is_new_at_first_and_nothing_after_that(directories: Directories) -> None:
    """If it failed, a daemon would overlook grants, or look at all of them all the time."""
    looking = Watch(directories)
    assert looking.changed() == {"linear", "notion"}
    assert looking.changed() == set()
    assert sorted(looking.names()) == ["linear", "notion"]


def _replace(directories: Directories) -> None:
    write_record(directories, "linear", Stored(None, NOTHING), grant(generation=9))


def _remove(directories: Directories) -> None:
    directories.record("linear").unlink()


def _demand(directories: Directories) -> None:
    (directories.demands / "linear.3").touch()


def _leave_over(directories: Directories) -> None:
    directories.intent("linear").touch()


def _publish(directories: Directories) -> None:
    directories.token("linear").write_text("{}")


@pytest.mark.parametrize("change", [_replace, _remove, _demand, _leave_over, _publish])
def test_what_is_new_of_one_name_is_told_of_that_name(
    directories: Directories, change: Callable[[Directories], None]
) -> None:
    """If it failed, the daemon would need a restart for it, or look at every grant whenever one changes."""
    looking = Watch(directories)
    looking.changed()
    age(directories)
    looking.changed()
    change(directories)
    assert looking.changed() == {"linear"}
    assert looking.changed() == set()


def test_a_change_within_the_tick_of_the_file_systems_clock_is_not_lost(directories: Directories) -> None:
    """If it failed, an import right after another change would go unnoticed for half a minute."""
    looking = Watch(directories)
    _replace(directories)
    looking.changed()
    before = directories.grants.stat()
    write_record(directories, "another", Stored(None, NOTHING), grant(name="another"))
    # As a coarse clock would have it: no directory looks any different.
    os.utime(directories.grants, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert looking.changed() == {"another"}


def test_a_name_can_be_looked_at_again(directories: Directories) -> None:
    """If it failed, a grant would not be planned anew after its rotation."""
    looking = Watch(directories)
    looking.changed()
    age(directories)
    looking.changed()
    looking.forget("linear")
    assert looking.changed() == {"linear"}


def test_nothing_is_listed_where_no_directory_says_that_anything_is_new(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, ten thousand grants would cost a processor while nothing happens."""
    looking = Watch(directories)
    looking.changed()
    age(directories)
    looking.changed()
    listed: list[object] = []

    def listdir(path: object) -> list[str]:
        listed.append(path)
        return []

    # A fake: it counts what the real one would do.
    monkeypatch.setattr(os, "listdir", listdir)
    for _ in range(10):
        assert looking.changed() == set()
    assert listed == []


def test_every_file_is_looked_at_now_and_then_and_every_name_when_a_clock_was_set(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a file changed in place, or a machine that has slept, would stay unnoticed."""
    looking = Watch(directories)
    looking.changed()
    age(directories)
    looking.changed()
    with directories.record("linear").open("ab") as file:
        file.write(b" ")
    assert looking.changed() == set(), "no directory has changed"
    # Fakes: no real clock can be set here.
    monotonic, wall = time.monotonic, time.time
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + LOOK_AT_LEAST)
    monkeypatch.setattr(time, "time", lambda: wall() + LOOK_AT_LEAST)
    assert looking.changed() == {"linear"}
    for offset in (7200.0, -7200.0):
        monkeypatch.setattr(time, "time", partial(_moved, wall, LOOK_AT_LEAST + offset))
        assert looking.changed() == {"linear", "notion"}
        assert looking.changed() == set()


def _moved(clock: Callable[[], float], by: float) -> float:
    return clock() + by


def test_names_and_files_that_are_none_of_ours_are_left_alone(directories: Directories) -> None:
    """If it failed, a stray file would be taken for a grant, or end the daemon."""
    for stray in ("UPPER.json", "a b.json", ".hidden.json", "notes.txt"):
        (directories.grants / stray).touch()
    (directories.demands / "nobody.1").touch()
    (directories.demands / "linear.x").mkdir()
    assert Watch(directories).changed() == {"linear", "notion"}


def test_grants_that_others_can_read_are_an_error_until_it_is_mended(directories: Directories) -> None:
    """If it failed, the daemon would go on with grants that others can read."""
    looking = Watch(directories)
    looking.changed()
    directories.grants.chmod(0o755)
    for _ in range(2):
        with pytest.raises(DirectoryError, match="chmod 700"):
            looking.changed()
    directories.grants.chmod(0o700)
    # Whatever was due meanwhile has not been looked at.
    assert looking.changed() == {"linear", "notion"}
