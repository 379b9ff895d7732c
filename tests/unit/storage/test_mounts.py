"""On what the directories lie, and what a person is told of it."""

import os
from pathlib import Path

import pytest

from refresher.storage.directories import Directories
from refresher.storage.mounts import kind
from refresher.storage.startup_checks import cautions, tell
from tests.conftest import need
from tests.support.fake_state import directories
from tests.support.parts import mounted, no_mounts

# As a kernel printed them: a bind mount, an odd name, shared and private ones, NFS, a share, and one mounted over.
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
def test_the_kind_of_a_file_system_is_what_the_kernel_says(device: tuple[int, int], expected: str | None) -> None:
    """If it failed, people would be warned about the wrong directory, or not at all."""
    assert kind(os.makedev(*device), MOUNTINFO) == expected
    assert kind(os.makedev(*device), "") is None


def _claiming(path: Path, filesystem: str) -> str:
    """Return what a kernel would say if ``path`` lay on that: there is no server for one here, hence a fake."""
    device = path.stat().st_dev
    return f"22 1 {os.major(device)}:{os.minor(device)} / / rw - {filesystem} source rw\n"


@pytest.mark.parametrize("filesystem", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "virtiofs"])
def test_grants_on_a_network_file_system_are_warned_about(tmp_path: Path, filesystem: str) -> None:
    """If it failed, two machines would spend one refresh token, and nobody had been told that they may."""
    (caution,) = cautions(directories(tmp_path), _claiming(tmp_path, filesystem))
    assert f"grants is on a network file system ({filesystem})" in caution


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs", "xfs", "overlay", "fuse.lxcfs"])
def test_an_ordinary_disk_is_no_news(tmp_path: Path, filesystem: str) -> None:
    """If it failed, warnings that mean nothing would teach people to read none."""
    assert cautions(directories(tmp_path), _claiming(tmp_path, filesystem)) == []
    assert cautions(directories(tmp_path), "") == []


@pytest.mark.parametrize("made", [True, False], ids=["the spill directory is there", "it is made when it is needed"])
def test_a_spill_directory_in_memory_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, made: bool
) -> None:
    """If it failed, the place of last resort would forget a refresh token with the next restart."""
    need(no_mounts())
    with mounted(tmp_path / "memory", "size=64k"):
        spill = tmp_path / "memory/deep/spill"
        if made:
            spill.mkdir(parents=True, mode=0o700)
        state = tmp_path / "state"
        there = Directories(state=state, tokens=state / "tokens", demands=state / "demands", spill=spill)
        there.ensure()
        for _ in range(2):
            tell(there)
        (line,) = caplog.messages
    assert f"{spill} is in memory (tmpfs)" in line


def test_a_parent_that_anybody_can_write_is_warned_about(tmp_path: Path) -> None:
    """If it failed, anybody on the machine could take the grants away, though nobody else can look into them."""
    made = directories(tmp_path)
    for mode, expected in ((0o777, 1), (0o1777, 0), (0o775, 0)):
        tmp_path.chmod(mode)
        said = cautions(made, "")
        assert len(said) == expected
        assert all(f"anybody can write in {tmp_path}" in caution for caution in said)
    tmp_path.chmod(0o700)
