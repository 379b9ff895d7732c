"""An agent that tries to do harm, as a program: random file operations in every directory that it can reach.

    python -m tests.faults.fuzz.agent '{"seed": ..., "number": ..., ...}'

It starts as root and becomes the user. It ends when its stdin is closed, and prints how often each operation succeeded.
"""

# System calls, as an attacker makes them.
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH123, PTH208, PTH211

import ctypes
import fcntl
import json
import os
import random
import select
import shutil
import socket
import stat
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.faults.fuzz.plan import Plan
from tests.support.as_user import become

__all__ = ["main"]

_HUGE: Final = 10**17
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_FILES: Final = [
    *(
        "{0}.json",
        ".{0}.json.new",
        "{0}.json.aside.1",
        "{0}.lock",
        "{0}.intent",
        "{0}.next",
        "{0}.next.1",
        "{0}.barred",
    ),
    *(
        "{0}.answer.1",
        "{0}",
        "{0}.",
        ".{0}",
        "{0}.01",
        "{0}.-1",
        "{0}.1.tmp",
        "ignored-{0}",
        ".import.lock",
        ".tmp",
        ".x.new",
    ),
]
_DIRECTORIES: Final = ["grants", "tokens", "demands", "spill", "state", "home", "refresher", "config.toml"]


class _Agent:
    def __init__(self, given: dict[str, Any]) -> None:
        self.done: Counter[str] = Counter()
        self._number = int(given["number"])
        self._rng = random.Random(f"{given['seed']} {self._number}")
        self._plan = Plan(Path(given["plan"]))
        self._demands = given["demands"]
        self._tokens = given["tokens"]
        self._others: list[str] = given["others"]
        """Directories that it may or may not be able to write."""
        self._places: list[str] = given["places"]
        """What refresher makes itself, in directories in which agents may be able to make files."""
        self._private: list[str] = given["private"]
        """Directories of refresher's user that it must not get."""
        self._targets: list[str] = given["targets"]
        """What links lead to."""
        self._free: list[str] = given["free"]
        """Grants that it may demand at any time."""
        self._strict: list[str] = given["strict"]
        self._most = int(given["most"])
        self._own: list[str] = []
        self._held: list[int] = []
        self._exchange = ctypes.CDLL(None, use_errno=True).renameat2
        self._operations: list[tuple[Callable[[], object], int]] = [
            (self._create, 20),
            (self._write, 6),
            (self._truncate, 3),
            (self._make_directory, 8),
            (self._make_full_directory, 8),
            (self._link, 10),
            (self._hard_link, 5),
            (self._rename, 10),
            (self._swap, 6),
            (self._delete, 10),
            (self._change_mode, 5),
            (self._change_time, 2),
            (self._change_group, 2),
            (self._make_fifo, 5),
            (self._make_socket, 3),
            (self._lock, 3),
            (self._listen_and_read, 3),
            (self._flood, 1),
            (self._take_place, 6),
        ]

    def act(self) -> float:
        """Do one thing, and return the pause after it in seconds."""
        self._plan.see(self._number)
        if len(self._own) > self._most:
            self._tidy()
        calls, weights = zip(*self._operations, strict=True)
        (call,) = self._rng.choices(calls, weights)
        name = call.__name__.strip("_")
        try:
            call()
            self.done[f"{name} done"] += 1
        except (OSError, ValueError):
            self.done[f"{name} refused"] += 1
        return self._rng.choice((0, 0, 0, 0.002, 0.01))

    # --- names ----------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        roll = self._rng.random()
        if roll < 0.35:
            name = self._rng.choice(self._free)
            return f"{name}.{max(self._generation(name) + self._rng.choice((-1, 0, 0, 0, 1, 2, _HUGE)), 0)}"
        if roll < 0.65 and self._strict:
            grant = self._rng.randrange(len(self._strict))
            return f"{self._strict[grant]}.{self._plan.floor(grant) + self._rng.choice((0, 0, 0, 1, 2, _HUGE))}"
        if roll < 0.85:
            return self._rng.choice(_FILES).format(self._rng.choice(self._free + self._strict))
        if roll < 0.95:
            return self._rng.choice(_DIRECTORIES)
        return "".join(self._rng.choices("a.1-\n\x1b[\u00e9 ", k=self._rng.choice((1, 3, 9, 200, 255))))

    def _generation(self, name: str) -> int:
        with suppress(OSError, ValueError), open(f"{self._tokens}/{name}.json", "rb") as file:
            return int(json.load(file)["generation"])
        return 0

    def _directory(self) -> str:
        return self._demands if self._rng.random() < 0.6 else self._rng.choice(self._others)

    def _new(self) -> str:
        path = f"{self._directory()}/{self._name()}"
        self._own.append(path)
        return path

    def _one_of_own(self) -> str:
        if self._own and self._rng.random() < 0.8:
            return self._rng.choice(self._own)
        directory = self._directory()
        return f"{directory}/{self._rng.choice([*os.listdir(directory)[:500], self._name()])}"

    def _target(self) -> str:
        return self._rng.choice(
            [*self._targets, "nowhere", ".", "..", "/", "/dev/zero", self._name(), self._one_of_own()]
        )

    # --- operations -----------------------------------------------------------------------------------------------

    def _create(self) -> None:
        os.close(os.open(self._new(), os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, self._rng.choice((0o600, 0o666, 0))))

    def _open(self, flags: int) -> int:
        return os.open(self._one_of_own(), flags | os.O_NONBLOCK | os.O_CLOEXEC)

    def _write(self) -> None:
        descriptor = self._open(os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, self._rng.choice((b"x", b"{}", b"\0" * 70_000, b'{"version": 1, "generation": 9}')))
        finally:
            os.close(descriptor)

    def _truncate(self) -> None:
        descriptor = self._open(os.O_WRONLY)
        try:
            os.ftruncate(descriptor, self._rng.choice((0, 1, 10**12)))
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        os.mkdir(self._new(), self._rng.choice((0o700, 0o777, 0)))

    def _make_full_directory(self) -> None:
        os.mkdir(path := self._new())
        for _ in range(self._rng.choice((1, 1, 30))):
            os.mkdir(path := f"{path}/{self._rng.choice(self._free)}.1")
        os.chmod(self._own[-1], self._rng.choice((0o700, 0o777, 0)))

    def _link(self) -> None:
        os.symlink(self._target(), self._new())

    def _hard_link(self) -> None:
        os.link(self._target(), self._new(), follow_symlinks=False)

    def _rename(self) -> None:
        os.rename(self._one_of_own(), self._new())

    def _swap(self) -> None:
        # A name may come into demands/ only by way of the plan.
        first, second = self._one_of_own(), self._new()
        if not os.path.lexists(second):
            os.mkdir(second)
        if self._exchange(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "swap")

    def _delete(self) -> None:
        self._remove(self._one_of_own())

    def _remove(self, path: str) -> None:
        with suppress(ValueError):
            self._own.remove(path)
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            os.chmod(path, 0o700)
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def _change_mode(self) -> None:
        os.chmod(self._one_of_own(), self._rng.choice((0, 0o444, 0o777, 0o2777, 0o1777, 0o7777)))

    def _change_time(self) -> None:
        os.utime(self._one_of_own(), (self._rng.choice((0, 1e9, 4e9)),) * 2, follow_symlinks=False)

    def _change_group(self) -> None:
        os.chown(self._one_of_own(), -1, os.getgid(), follow_symlinks=False)

    def _make_fifo(self) -> None:
        os.mkfifo(self._new(), self._rng.choice((0o600, 0o666)))

    def _make_socket(self) -> None:
        path = Path(self._new())
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)

    def _lock(self) -> None:
        places = [
            self._demands,
            self._tokens,
            f"{self._tokens}/{self._rng.choice(self._free)}.json",
            self._one_of_own(),
        ]
        self._hold(os.open(self._rng.choice(places), os.O_RDONLY | os.O_NONBLOCK))
        fcntl.flock(self._held[-1], self._rng.choice((fcntl.LOCK_EX, fcntl.LOCK_SH)) | fcntl.LOCK_NB)

    def _listen_and_read(self) -> None:
        self._hold(descriptor := self._open(os.O_RDONLY))
        os.read(descriptor, 100)

    def _hold(self, descriptor: int) -> None:
        self._held.append(descriptor)
        if len(self._held) > 50:
            os.close(self._held.pop(0))

    def _flood(self) -> None:
        for number in range(self._rng.choice((50, 500, 3000))):
            self._plan.see(self._number)  # it makes none of the strict demands
            name = self._rng.choice((f"unknown-{number}.0", f"{self._rng.choice(self._free)}.{_HUGE + number}"))
            self._own.append(path := f"{self._demands}/{name}")
            with suppress(OSError):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK))

    def _take_place(self) -> None:
        place = self._rng.choice(self._places)
        if self._rng.random() < 0.7:
            os.symlink(self._rng.choice(self._private), place)
        else:
            os.mkdir(place, self._rng.choice((0o700, 0o777, 0o3777)))

    def _tidy(self) -> None:
        old, self._own = self._own[: self._most // 2], self._own[self._most // 2 :]
        for path in old:
            self._plan.see(self._number)
            with suppress(OSError):
                self._remove(path)


def main(text: str) -> None:
    """Act until stdin is closed."""
    given = json.loads(text)
    agent = _Agent(given)
    become(given["user"], given["group"])
    os.nice(5)
    os.umask(0)
    pause = 0.0
    while not select.select([sys.stdin], [], [], pause)[0]:
        pause = agent.act()
    print(json.dumps(agent.done))


if __name__ == "__main__":
    main(sys.argv[1])
