"""Which kind of file system something lies on, by what Linux says of its mounts (proc(5), mountinfo).

Pure. By the device, as ``stat`` gives it: so links, bind mounts, overmounts and odd names of directories need no care.
"""

import os
from typing import Final

__all__ = ["IN_MEMORY", "REMOTE", "kind"]

IN_MEMORY: Final = frozenset({"ramfs", "tmpfs"})
REMOTE: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "virtiofs",
    }
)


def kind(device: int, mountinfo: str) -> str | None:
    """Return the kind of the file system on ``device`` (a ``st_dev``); ``None`` where ``mountinfo`` does not tell."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        # Between the two parts there may be any number of fields, and no other field is a lone dash.
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2:3] == [wanted]:
            return next(iter(filesystem.split()), None)
    return None
