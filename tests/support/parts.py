"""Programs and rights that a test needs, and faults that they inject."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["dead_mount", "faketime", "injecting", "mounted", "no_dead_mounts", "no_mounts", "no_strace"]


def no_strace() -> str | None:
    """Return why faults cannot be injected here, ``None`` if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "strace is not allowed to trace here"
    return None


def no_mounts() -> str | None:
    """Return why file systems cannot be mounted here, ``None`` if they can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    return None


def no_dead_mounts() -> str | None:
    """Return why no file system that never answers can be mounted here, ``None`` if one can."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "mounting a file system that never answers needs root and /dev/fuse"
    return None


def faketime() -> Path | None:
    """Return the library that changes the clock of a process, ``None`` if it is not installed.

    The build for threads: the plain one sometimes returns the true time while another thread reads the clock.
    """
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs at ``place``."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def dead_mount(place: Path) -> Iterator[None]:
    """Mount a file system at ``place`` that answers no request, like that of a server that is away."""
    force_and_detach = 3
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"dead", os.fsencode(place), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.umount2(os.fsencode(place), force_and_detach)
    finally:
        os.close(device)


def injecting(calls: str, fault: str, output: Path = Path("/dev/null")) -> tuple[str, ...]:
    """Return a command prefix with which strace injects ``fault`` into the given system calls (comma-separated).

    ``output``: the file that strace writes to.
    """
    return ("strace", "-f", "-qq", "-o", str(output), "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}")
