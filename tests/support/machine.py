"""A separate machine for a test: a copy of this one that may be changed, with its own process 1."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.command import LONGEST, wait_until
from tests.support.deployed import ROOT
from tests.support.parts import no_mounts
from tests.support.vault import Vault

__all__ = ["CHECKOUT", "Machine", "no_machine"]

CHECKOUT: Final = "/opt/checkout"
_SYSTEMD: Final = "/lib/systemd/systemd"

_RUNNING: Final = ("running\n", "degraded\n")
_BEFORE: Final = ("unshare", "bash", "setpriv", "env", "chroot")
"""The programs that process 1 runs before the first command, while the root is not complete."""

# The shell joins the control group before it makes the namespace; all processes end with the tests.
_BY: Final = "exec setpriv --pdeathsig KILL unshare --fork --kill-child"
_JOIN: Final = ("sh", "-c", f'echo $$ >"$0/cgroup.procs"; {_BY} "$@"')
_APART: Final = ("--pid", "--mount", "--cgroup", "--uts", "--ipc", "--propagation=private", "bash", "-c")

# A shell script, because a moved Python needs LD_LIBRARY_PATH.
_COMMAND: Final = f"""#!/bin/sh
LD_LIBRARY_PATH=/opt/python/lib exec /opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]} -Ic '
import sys
sys.path[:0] = ["{CHECKOUT}", "/opt/packages"]
from refresher.__main__ import main
sys.exit(main())' "$@"
"""

# A root whose changes are in memory until the last process ends, with its own /tmp, /run and devices. It shares the
# network, on which the servers of the tests listen, and the kernel, which must not be changed.
_BEGIN: Final = """
set -eu
place=$1; shift
mount -t tmpfs -o mode=0755 tmpfs "$place"
mkdir "$place/changes" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/changes,workdir=$place/work" overlay "$place/root"
cd "$place/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for own in run tmp dev home root; do mount -t tmpfs -o mode=0755 tmpfs "$own"; done
chmod 1777 tmp
for device in null zero full random urandom tty; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mkdir dev/pts dev/shm; mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd; ln -s /proc/self/fd/2 dev/stderr
# At other paths, because the users of a test can read neither the home of root nor /tmp.
for shared in "$1=opt/checkout" "$2=opt/python" "$3=opt/packages"; do
  mkdir -p "${shared#*=}"; mount --bind "${shared%=*}" "${shared#*=}"; mount -o remount,bind,ro "${shared#*=}"
done
shift 3
# Without the services and cron jobs of this machine.
rm -rf etc/systemd/system/*.wants etc/cron.d/* var/spool/cron/crontabs/* var/lib/systemd/linger/* var/tmp/*
for unit in modules-load remount-fs sysctl; do ln -s /dev/null "etc/systemd/system/systemd-$unit.service"; done
: >etc/crontab; : >etc/fstab; : >etc/machine-id
# Not chroot: a process that joins the namespace of a service would have the old root.
mkdir old; pivot_root . old; umount -l old; rmdir old
# systemd requires this.
mount --make-rshared /
exec setpriv --bounding-set=-sys_boot,-sys_module,-sys_rawio,-sys_time \\
  env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 chroot / "$@"
"""


def no_machine(*parts: str) -> str | None:
    """Return why a machine with these commands is not possible here; ``None`` if it is."""
    for part in (_SYSTEMD, "unshare", "nsenter", *parts):
        if shutil.which(part) is None:
            return f"{Path(part).name} is not installed"
    if (reason := no_mounts()) is not None:
        return reason
    return None if _cgroups() is not None else "there is no cgroup2 file system"


def _cgroups() -> Path | None:
    found = re.search(r"^(?:\S+ ){4}(\S+) .* - cgroup2 ", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
    return None if found is None else Path(found[1])


class Machine:
    """Runs ``first`` as process 1, by default systemd; at the end, all its processes and changes are gone."""

    def __init__(self, place: Path, *first: str) -> None:
        cgroups = _cgroups()
        assert cgroups is not None
        self._place = place
        self._first = first or (_SYSTEMD, "--system", "--unit=multi-user.target")
        self._cgroup = cgroups / f"refresher-test-{uuid.uuid4().hex[:12]}"
        self._vault = Vault()

    def __enter__(self) -> Self:
        self._place.mkdir()
        self._cgroup.mkdir()
        self._process = subprocess.Popen(
            [
                *_JOIN,
                str(self._cgroup),
                *_APART,
                _BEGIN,
                "bash",
                str(self._place),
                str(ROOT),
                sys.base_prefix,
                sysconfig.get_path("purelib"),
                *self._first,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_until(self._is_up, "the machine has started")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        wait_until(self._is_gone, "its control groups are empty")

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._said()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        if not children:
            return False
        self._pid = int(children)
        if Path(f"/proc/{self._pid}/comm").read_text().strip() in _BEFORE:
            return False
        return self._first[0] != _SYSTEMD or self.run("systemctl is-system-running").stdout in _RUNNING

    def _said(self) -> str:
        return "" if self._process.stdout is None else self._process.stdout.read()

    def _is_gone(self) -> bool:
        with suppress(OSError):
            for directory, _, _ in os.walk(self._cgroup, topdown=False):
                Path(directory).rmdir()
        return not self._cgroup.exists()

    def path(self, inside: str) -> Path:
        """Return the path outside the machine for a path inside."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def install(self, command: str, *, user: str = "root") -> None:
        """Install the command at the path that ``pip install`` uses."""
        self(f"mkdir -p $(dirname {command}); cat >{command} <<'END'\n{_COMMAND}END\nchmod 755 {command}", user=user)

    def bring(self, name: str, fields: Mapping[str, Any], *, user: str) -> None:
        """Import a grant as a user would."""
        self._vault.learn(fields.get("refresh_token"))
        self(f"PATH=~/.local/bin:$PATH refresher import {name} --from - <<'END'\n{json.dumps(fields)}\nEND", user=user)

    def __call__(self, script: str, *, user: str = "root") -> str:
        """Run a script in the checkout as a user who has just logged in, check that it succeeds, and return its output."""
        done = self.run(script, user=user)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, script: str, *, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a script in the checkout as a user who has just logged in."""
        within = ("nsenter", "--target", str(self._pid), "--all", "--root", "--wd")
        log_in = ("su", "--login", user, "--shell=/bin/bash", "--command", 'cd "$0"; exec bash -euc "$1"')
        done = subprocess.run(
            [*within, "env", "-i", *log_in, CHECKOUT, script],
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )
        for state in (*self.path("/home").glob("*/.local/state/refresher"), self.path("/var/lib/refresher")):
            self._vault.learn_from(state)
        if "refresher token" not in script:
            leaks = self._vault.leaks_in(done.stdout + done.stderr)
            assert not leaks, f"the output of {script!r} holds a secret: {leaks}"
        return done
