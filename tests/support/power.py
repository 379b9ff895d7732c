"""Power losses: an ext4 file system in a file, copied while it lives, and a process that stops at each step."""

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

STEPS = "fsync,fchmod,pwrite64,ftruncate,rename,unlink,mkdir,chmod,utimensat,connect,sendto,recvfrom"
"""The system calls that change a file system or the network."""

_STOPPED = re.compile(
    r"^(\d+) +(\w+)[^\n]*\n\1 +--- SIGSTOP [^\n]*\n(?:[^\n]*\n)*?\1 +--- stopped by SIGSTOP ---$", re.MULTILINE
)


def no_disk() -> str | None:
    """Return why there can be no ext4 of one's own here, ``None`` if there can."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    return no_mounts()


class Disk:
    """An ext4 at ``place`` that writes nothing by itself before somebody's fsync asks for it.

    Its image has what reached the loop device, so what it lacks are the caches of the file system: that is what a power
    loss takes. (A disk's own cache, which an fsync empties, is not modelled.) No commits by the clock, and no help for
    programs that rename without fsync: others do not give it either.
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
        """Mount ``image``; its journal is replayed where it was not unmounted."""
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = "loop,commit=300,noauto_da_alloc"
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(image), str(place)], check=True)

    def commit(self) -> None:
        """Have somebody else's fsync take all names along: those are durable then, contents need not be."""
        descriptor = os.open(self.place / "somebody-else", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(descriptor, os.urandom(8))
        os.fsync(descriptor)
        os.close(descriptor)

    def settle(self) -> None:
        """Write everything: where a test begins."""
        subprocess.run(["sync", "-f", str(self.place)], check=True)

    def die(self) -> None:
        """Take nothing more, as ext4 does after an error of its disk; what is not durable by now is lost."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.place)], check=True)

    def revive(self) -> None:
        """Mount it anew, with what was durable when it died."""
        subprocess.run(["umount", str(self.place)], check=True)
        self.mount(self.image, self.place)

    def copy(self, name: str) -> Path:
        """Copy the image of the live file system."""
        copied = self.image.with_name(name)
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copied)], check=True)
        return copied

    @contextmanager
    def after_power_loss(self, image: Path) -> Iterator[Path]:
        """Have a copy mounted beside the live one."""
        place = image.with_name(f"{image.name}.mounted")
        self.mount(image, place)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
            image.unlink()


def other_boot(home: Path) -> tuple[str, ...]:
    """Return what to put before a command that shall believe that the machine was started anew."""
    boot = home / "boot_id"
    boot.write_text("00000000-0000-4000-8000-000000000000\n")
    within = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", within, str(boot))


def stopping(words: Path, failing: str = "") -> tuple[str, ...]:
    """Return what to put before a command that shall stop after each of its steps, and be let go by ``steps``.

    ``failing``: a system call that shall fail besides.
    """
    what = ("-e", f"trace={STEPS}", "-e", f"inject={STEPS}:signal=STOP", "-e", "signal=STOP")
    fault = ("-e", f"inject={failing}:error=EIO:signal=STOP") if failing else ()
    return ("strace", "-f", "-qq", "-o", str(words), *what, *fault)


def steps(process: subprocess.Popen[str], words: Path) -> Iterator[str]:
    """Yield the system call after which ``process``, begun by ``stopping``, stands still; then let it go on."""
    done: list[str] = []

    def stopped() -> list[str]:
        said = words.read_text() if words.exists() else ""
        return [match[2] for match in _STOPPED.finditer(said)]

    while True:
        wait_until(lambda: len(stopped()) > len(done) or process.poll() is not None, "the next step is done")
        if len(stopped()) == len(done):
            return
        done.append(stopped()[len(done)])
        yield done[-1]
        process.send_signal(signal.SIGCONT)
