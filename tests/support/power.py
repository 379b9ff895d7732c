"""Power losses: an ext4 file system in a file, copied while it is mounted, and a process that stops at each step."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import wait_until
from tests.support.parts import no_mounts

__all__ = ["STEPS", "Disk", "no_disk", "other_boot", "steps", "stopping"]

STEPS = "fsync,fchmod,pwrite64,ftruncate,rename,renameat,unlink,unlinkat,mkdir,chmod,utimensat,connect,sendto,recvfrom"
"""The system calls that change a file system or the network."""

_STOPPED = re.compile(
    r"^(\d+) +(\w+)[^\n]*\n\1 +--- SIGSTOP [^\n]*\n(?:[^\n]*\n)*?\1 +--- stopped by SIGSTOP ---$", re.MULTILINE
)


def no_disk() -> str | None:
    """Return why a test cannot have its own ext4 here, ``None`` if it can."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    return no_mounts()


class Disk:
    """An ext4 at ``place`` that writes nothing until a program calls fsync.

    Its image has what reached the loop device, without the caches of the file system: a power loss removes those. (The
    cache of a real disk is not modelled; an fsync empties it.) It has no periodic commits, and no special treatment of
    programs that rename without fsync, because other file systems have neither.
    """

    def __init__(self, place: Path, images: Path) -> None:
        self.place = place
        self.image = images / "live"

    def __enter__(self) -> "Disk":
        with self.image.open("wb") as image:
            image.truncate(4 * 1024 * 1024)
        made = ["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=1", "-E", "lazy_itable_init=0", str(self.image)]
        subprocess.run(made, check=True)
        self.mount(self.image, self.place)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)

    def mount(self, image: Path, place: Path) -> None:
        """Mount ``image``; the kernel replays its journal if it was not unmounted."""
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = "loop,commit=300,noauto_da_alloc"
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(image), str(place)], check=True)

    def commit(self) -> None:
        """Sync another file: this makes all names durable, but not the contents of other files."""
        descriptor = os.open(self.place / "another-file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(descriptor, os.urandom(8))
        os.fsync(descriptor)
        os.close(descriptor)

    def settle(self) -> None:
        """Sync everything, at the start of a test."""
        subprocess.run(["sync", "-f", str(self.place)], check=True)

    def fail(self) -> None:
        """Become read-only, as ext4 does after a disk error; what is not durable is lost."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.place)], check=True)

    def repair(self) -> None:
        """Mount it again, with what was durable when it failed."""
        subprocess.run(["umount", str(self.place)], check=True)
        self.mount(self.image, self.place)

    def copy(self, name: str) -> Path:
        """Copy the image of the live file system."""
        copied = self.image.with_name(name)
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copied)], check=True)
        return copied

    @contextmanager
    def after_power_loss(self, image: Path) -> Iterator[Path]:
        """Mount a copy beside the live file system."""
        place = image.with_name(f"{image.name}.mounted")
        self.mount(image, place)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
            image.unlink()


def other_boot(home: Path) -> tuple[str, ...]:
    """Return a command prefix with which a process sees the boot id of a rebooted machine."""
    boot = home / "boot_id"
    boot.write_text("00000000-0000-4000-8000-000000000000\n")
    within = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", within, str(boot))


def stopping(trace: Path, failing: str = "") -> tuple[str, ...]:
    """Return a command prefix that stops a process after each of its steps, until ``steps`` continues it.

    ``failing``: a system call that fails as well.
    """
    calls = ("-e", f"trace={STEPS}", "-e", f"inject={STEPS}:signal=STOP", "-e", "signal=STOP")
    fault = ("-e", f"inject={failing}:error=EIO:signal=STOP") if failing else ()
    return ("strace", "-f", "-qq", "-o", str(trace), *calls, *fault)


def steps(process: subprocess.Popen[str], trace: Path) -> Iterator[str]:
    """Yield the system call after which ``process``, started with ``stopping``, is stopped; then continue it."""
    done: list[str] = []

    def stopped() -> list[str]:
        text = trace.read_text() if trace.exists() else ""
        return [match[2] for match in _STOPPED.finditer(text)]

    while True:
        wait_until(lambda: len(stopped()) > len(done) or process.poll() is not None, "the next step is done")
        if len(stopped()) == len(done):
            return
        done.append(stopped()[len(done)])
        yield done[-1]
        process.send_signal(signal.SIGCONT)
