"""What the doctor finds in the directories, with real modes, owners and mounts."""

import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from refresher.doctor import places
from refresher.observers.history import History
from refresher.operations.events import Event
from refresher.storage.directories import Directories
from tests.conftest import need
from tests.support.fake_state import directories
from tests.support.parts import mounted, no_mounts


def codes(made: Directories) -> list[str]:
    """Return the codes of what is found."""
    return [finding.code for finding in places.check(made).findings]


def test_directories_as_refresher_makes_them_have_no_finding(tmp_path: Path) -> None:
    """If it failed, a person would be sent to mend what is right."""
    listing, findings = places.check(directories(tmp_path))
    assert findings == []
    assert listing is not None


def test_directories_that_do_not_exist_yet_are_not_created(tmp_path: Path) -> None:
    """If it failed, a look at a set-up would create one."""
    made = Directories(state=tmp_path / "s", tokens=tmp_path / "t", demands=tmp_path / "d", spill=tmp_path / "p")
    assert codes(made) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "code", "mend"),
    [
        (lambda made: made.grants.chmod(0o755), "directory_refused", "chmod 700 {grants}"),
        (lambda made: made.tokens.chmod(0o777), "directory_refused", "chmod o-w {tokens}"),
        (lambda made: os.chown(made.grants, 12345, -1), "directory_refused", "run it as its owner"),
        (lambda made: made.demands.chmod(0o777), "directory_refused", "chmod o-w {demands}"),
        (lambda made: (made.tokens / ".import.lock").touch(), "directory_refused", ""),
        (lambda made: os.chown(made.demands, 12345, -1), "demands_refused", "chown {user} {demands}"),
        (lambda made: made.tokens.chmod(0o750), "directory_risk", "chmod 700"),
        (lambda made: made.spill.mkdir(mode=0o755), "directory_risk", "--spill-dir"),
        (lambda made: made.state.parent.chmod(0o777), "directory_risk", "chmod o-w {above}"),
        (lambda made: made.import_lock.symlink_to("elsewhere"), "no_locks", ""),
    ],
)
def test_a_wrong_mode_or_owner_is_found_with_the_command_that_mends_it(
    tmp_path: Path, spoil: Callable[[Directories], object], code: str, mend: str
) -> None:
    """If it failed, a person would know that nothing rotates, and not which command helps."""
    need(no_mounts())  # only root can give a directory away
    made = directories(tmp_path)
    spoil(made)
    listing, (finding,) = places.check(made)
    assert finding.code == code, finding
    words = {
        "grants": made.grants,
        "tokens": made.tokens,
        "demands": made.demands,
        "above": tmp_path,
        "user": os.geteuid(),
    }
    assert mend.format(**words) in finding.mend
    assert (listing is None) is (code == "directory_refused")


def test_agents_of_a_group_that_cannot_enter_a_directory_are_found(tmp_path: Path) -> None:
    """If it failed, agents without tokens would be the first to notice a closed home directory."""
    need(no_mounts())
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    made = msgspec.structs.replace(directories(home), group=54321)
    made.prepare()
    findings = places.check(made).findings
    assert {finding.code for finding in findings} == {"group_shut_out"}
    assert f"chmod o+x {home}" in [finding.mend for finding in findings]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("size=512k", "no_space"),
        ("size=300m,nr_inodes=10", "no_space"),
        ("size=300m", None),
        ("size=300m,ro", "read_only"),
    ],
)
def test_a_full_or_read_only_file_system_is_found(tmp_path: Path, options: str, code: str | None) -> None:
    """If it failed, a rotation would be the first to notice that a new token cannot be saved."""
    need(no_mounts())
    with mounted(tmp_path / "disk", options.removesuffix(",ro")):
        made = msgspec.structs.replace(directories(tmp_path / "disk"), spill=tmp_path / "spill")
        if options.endswith(",ro"):
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert set(codes(made)) == ({code} if code else set())


def test_little_space_and_few_inodes_are_found_before_it_is_too_late(tmp_path: Path) -> None:
    """If it failed, nobody would be warned before a disk is full."""
    need(no_mounts())
    with mounted(tmp_path / "disk", "size=20m,nr_inodes=500"):
        made = msgspec.structs.replace(directories(tmp_path / "disk"), spill=tmp_path / "spill")
        (tmp_path / "disk/large").write_bytes(bytes(18_500 * 1024))
        for number in range(460):
            (tmp_path / f"disk/{number}").touch()
        assert codes(made) == ["little_space", "little_space"]


def test_a_spill_directory_on_a_read_only_file_system_is_found(tmp_path: Path) -> None:
    """If it failed, nobody would know that the last resort of a new token does not exist."""
    need(no_mounts())
    made = directories(tmp_path)
    with mounted(made.spill, "size=300m"):
        subprocess.run(["mount", "-o", "remount,ro", str(made.spill)], check=True)
        risks = [finding.what for finding in places.check(made).findings if finding.code == "directory_risk"]
    assert any("read-only" in risk for risk in risks)


@pytest.mark.parametrize("directory", ["grants", "tokens"])
def test_a_file_that_is_a_mount_of_its_own_is_found(tmp_path: Path, directory: str) -> None:
    """If it failed, nobody would see why a token file in a container never changes."""
    need(no_mounts())
    made = directories(tmp_path)
    file, other = made.state / directory / "linear \\ one.json", tmp_path / "other"
    file.touch()
    other.touch()
    subprocess.run(["mount", "--bind", str(other), str(file)], check=True)
    try:
        (finding,) = places.check(made).findings
    finally:
        subprocess.run(["umount", str(file)], check=True)
    assert finding.code == "single_file_mount"
    assert str(file) in finding.what


def _made(path: Path) -> None:
    with closing(History(directories(path), days=30, megabytes=100)) as made:
        made.observe([Event(at=float(number), name="linear", kind="rotated") for number in range(500)])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _changed(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("spoil", "what", "mend"),
    [
        (lambda path: path.touch(), "", ""),
        (lambda path: path.unlink(), "", ""),
        (lambda path: path.write_bytes(b""), "", ""),
        (lambda path: (path.unlink(), path.mkdir()), "must be a file", "remove it"),
        (_pipe, "must be a file", "remove it"),
        (lambda path: (path.rename(path.parent / "other"), path.symlink_to("other")), "must be a file", "remove it"),
        (lambda path: path.chmod(0o644), "nobody else can read", "chmod 600 {path}"),
        (lambda path: path.write_bytes(b"noise" * 1000), "as it is damaged", "next event"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "as it is damaged", "next event"),
        (lambda path: _changed(path, "DROP TABLE event"), "as it is damaged", "next event"),
        (lambda path: _changed(path, "PRAGMA application_id = 7"), "as it is no history", "next event"),
        (lambda path: _changed(path, "PRAGMA user_version = 2"), "is of a later version", "newer refresher"),
    ],
)
def test_a_history_that_cannot_be_used_is_found_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], object], what: str, mend: str
) -> None:
    """If it failed, nobody would see why nothing is kept of what happens, or a look would cost the history."""
    _made(tmp_path)
    made = directories(tmp_path)
    spoil(made.history)
    before = {path: path.lstat()[:8] for path in made.state.iterdir() if path != made.history}
    findings = [*places.check_history(made)]
    assert [finding.code for finding in findings] == (["history_unusable"] if what else [])
    for finding in findings:
        assert what in finding.what
        assert mend.format(path=made.history) in finding.mend
    assert {path: path.lstat()[:8] for path in made.state.iterdir() if path != made.history} == before


def test_a_history_in_use_is_no_finding(tmp_path: Path) -> None:
    """If it failed, the doctor would report each history that 'run' is just writing."""
    made = directories(tmp_path)
    with closing(History(made, days=30, megabytes=100)) as writer:
        for number in range(20):
            writer.observe(
                [Event(at=float(each), name="linear", kind="rotated", detail="x" * 500) for each in range(50)]
            )
            assert [*places.check_history(made)] == [], number


def test_little_space_for_the_history_is_found(tmp_path: Path) -> None:
    """If it failed, events would be lost for a reason that nobody looks for."""
    need(no_mounts())
    made = directories(tmp_path)
    with mounted(made.state, "size=20m"):
        (finding,) = places.check_history(made)
    assert "less than 200 MB are free" in finding.what
    assert finding.mend == "make room, or set history_mb = 0"
