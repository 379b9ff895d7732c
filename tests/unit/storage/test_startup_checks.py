"""Warnings about the file systems and permissions of the directories."""

import os
from pathlib import Path

import pytest

from refresher.storage.directories import Directories
from refresher.storage.startup_checks import file_system, find_risks, warn
from tests.conftest import need
from tests.support.fake_state import directories
from tests.support.parts import mounted, no_mounts

# Printed by a real kernel: a bind mount, an unusual name, shared and private mounts, NFS, a share, and an overmount.
MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
30 22 0:26 / /var/tmp rw,nosuid,nodev shared:3 - tmpfs tmpfs rw,size=1024k
31 22 254:0 /home/a /mnt/a\040-\040bind rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
41 22 0:52 / /home/b rw,relatime shared:30 master:2 propagate_from:4 - nfs4 nas:/export/b rw,vers=4.2,hard,proto=tcp
42 22 0:53 / /srv/share rw,relatime - cifs //nas/share\040- rw,vers=3.1.1
43 22 0:54 / /srv/ssh rw,nosuid,nodev,relatime - fuse.sshfs host:/ rw,user_id=0
44 42 0:55 / /srv/share rw - 9p share rw,trans=virtio
garbage
45 22
"""


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ((254, 0), "ext4"),
        ((0, 26), "tmpfs"),
        ((0, 52), "nfs4"),
        ((0, 53), "cifs"),
        ((0, 54), "fuse.sshfs"),
        ((0, 55), "9p"),
        ((0, 5), None),
        ((22, 1), None),
    ],
)
def test_the_type_of_a_file_system_is_read_from_mountinfo(device: tuple[int, int], expected: str | None) -> None:
    """If it failed, refresher would warn about the wrong directory, or about none."""
    assert file_system(os.makedev(*device), MOUNTINFO) == expected
    assert file_system(os.makedev(*device), "") is None


def _mountinfo(path: Path, filesystem: str) -> str:
    """Return a fake mountinfo with ``path`` on that file system: the tests have no server for a real one."""
    device = path.stat().st_dev
    return f"22 1 {os.major(device)}:{os.minor(device)} / / rw - {filesystem} source rw\n"


@pytest.mark.parametrize("filesystem", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "virtiofs"])
def test_grants_on_a_network_file_system_cause_a_warning(tmp_path: Path, filesystem: str) -> None:
    """If it failed, two machines could spend the same refresh token without a warning before."""
    (risk,) = find_risks(directories(tmp_path), _mountinfo(tmp_path, filesystem))
    assert f"grants is on a network file system ({filesystem})" in risk


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs", "xfs", "overlay", "fuse.lxcfs"])
def test_an_ordinary_disk_causes_no_warning(tmp_path: Path, filesystem: str) -> None:
    """If it failed, people would learn to ignore warnings."""
    assert find_risks(directories(tmp_path), _mountinfo(tmp_path, filesystem)) == []
    assert find_risks(directories(tmp_path), "") == []


@pytest.mark.parametrize("exists", [True, False], ids=["the spill directory exists", "it is created later"])
def test_a_spill_directory_in_memory_causes_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, exists: bool
) -> None:
    """If it failed, a refresh token saved there would be lost at the next restart, without a warning before."""
    need(no_mounts())
    with mounted(tmp_path / "memory", "size=64k"):
        spill = tmp_path / "memory/deep/spill"
        if exists:
            spill.mkdir(parents=True, mode=0o700)
        state = tmp_path / "state"
        there = Directories(state=state, tokens=state / "tokens", demands=state / "demands", spill=spill)
        there.prepare()
        warned: set[str] = set()
        for _ in range(2):
            warn(there, warned)
        (line,) = caplog.messages
    assert f"{spill} is in memory (tmpfs)" in line


def test_a_parent_directory_that_anybody_can_write_causes_a_warning(tmp_path: Path) -> None:
    """If it failed, any user of the machine could replace the grants, without a warning before."""
    made = directories(tmp_path)
    for mode, expected in ((0o777, 1), (0o1777, 0), (0o775, 0)):
        tmp_path.chmod(mode)
        risks = find_risks(made, "")
        assert len(risks) == expected
        assert all(f"anybody can write in {tmp_path}" in risk for risk in risks)
    tmp_path.chmod(0o700)
