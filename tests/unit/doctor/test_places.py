"""What the doctor finds in the directories, with real modes, owners and mounts."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.doctor import places
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
