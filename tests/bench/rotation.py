"""What does one rotation cost, and does it depend on the number of other grants?

Rotations run in this process, as in that of the daemon; the server runs in another one.
"""

import re
import ssl
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple
from unittest.mock import patch

import httpx

from refresher.grants.record import Grant
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import files
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Attempt
from tests.bench.homes import Home, new_grants, shared
from tests.bench.measuring import CannotRun, Run, cost
from tests.bench.server import Server
from tests.support.parts import no_strace

__all__ = ["Spent", "measure", "rotated", "traced_rotation", "write_durably"]

_ROUNDS: Final = 15
_FEW: Final = 10
_TERMS: Final = Terms(ca_file=None, stopping=lambda: False)
_WRITE: Final = re.compile(r"(?:write|pwrite64)\(\d+<([^>]+)>.* = (\d+)")


class Spent(NamedTuple):
    """Milliseconds; ``saved``: the monotonic second at which the new record was durable."""

    wall: float
    cpu: float
    saved: float


def measure(run: Run) -> None:
    """Measure rotations among few and many grants, and what one of them writes."""
    sizes = [size for size in run.sizes if size >= _FEW]
    with Server() as server:
        homes = {size: shared(run, size) for size in sizes}
        for home in homes.values():
            home.add(new_grants(1, prefix="rotated", endpoint=server.endpoint))
        run.say(f"one rotation among {_FEW} to {sizes[-1]:,} grants")
        curve: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
        walls, windows = [], []
        for number in range(_ROUNDS + 1):
            for size, home in homes.items():
                floor, file = _floor(server, home.path)
                rotation = rotated(home, number + 1)
                if number == 0:
                    continue  # it loads modules
                curve[size].append((rotation.cpu, floor.cpu))
                if size == _FEW:
                    walls.append((rotation.wall, floor.wall))
                    windows.append((1000 * (rotation.saved - server.log()[-1].answered), file))
    for size in sizes:
        run.point("rotation", size, curve[size])
    run.note("rotation.flat", [(many, few) for (many, _), (few, _) in zip(curve[sizes[-1]], curve[_FEW], strict=True)])
    run.note("rotation.floor", walls)
    run.note("rotation.window", windows)
    _measure_writes(run)


def rotated(home: Home, generation: int) -> Spent:
    """Force one rotation of ``rotated-0`` beyond ``generation``, and return its cost."""
    saved = []
    persist = Attempt.persist

    def timed(attempt: Attempt, record: Grant, *, until_saved: bool) -> Grant:
        stored = persist(attempt, record, until_saved=until_saved)
        saved.append(time.monotonic())
        return stored

    with patch.object(Attempt, "persist", timed):
        wall, cpu = time.perf_counter(), time.process_time()
        result = rotate(FileStore(home.directories), Order(name="rotated-0", seen=generation, force=True), _TERMS)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if result is None or result.outcome != "rotated":
        raise CannotRun(f"a rotation ended with {result}")
    return Spent(1000 * wall, 1000 * cpu, saved[0])


_TLS: Final = ssl.create_default_context()


def _floor(server: Server, directory: Path) -> tuple[Spent, float]:
    """Make a new connection for a POST, and two durable files; return the cost, and the milliseconds of one file."""
    wall, cpu = time.perf_counter(), time.process_time()
    with httpx.Client(verify=_TLS, trust_env=False) as client:
        client.post(server.endpoint(0), data={"client_id": "bare/60", "refresh_token": "a"}).raise_for_status()
    begun = time.perf_counter()
    for _ in range(2):
        write_durably(directory / "bare.json")
    ended = time.perf_counter()
    return Spent(1000 * (ended - wall), 1000 * (time.process_time() - cpu), ended), 500 * (ended - begun)


def write_durably(path: Path) -> None:
    """Replace a file as the product does: the new bytes, and then their name, are on the disk."""
    temporary = path.with_name(f"{path.name}.new")
    files.durable_create(temporary, bytes(1024))
    temporary.rename(path)
    files.sync_directory(path.parent)


def _measure_writes(run: Run) -> None:
    """Count the fsyncs and the bytes of a rotation with strace."""
    run.say("what one rotation writes")
    with Server() as server:
        home = Home(run.root / "traced", new_grants(1, endpoint=server.endpoint))
        syncs, written = traced_rotation(home)
    run.note("rotation.syncs", [(syncs, 4)])
    kept = sum(path.stat().st_size for path in (home.directories.record("grant-0"), home.directories.token("grant-0")))
    run.note("rotation.bytes", [(written / 1024, kept / 1024)])


def traced_rotation(home: Home) -> tuple[int, int]:
    """Rotate the grants of ``home`` under strace; return the number of fsyncs, and the bytes written below its state."""
    if (reason := no_strace()) is not None:
        raise CannotRun(reason)
    strace = [
        "strace",
        "-ff",
        "-qq",
        "-y",
        "-o",
        str(home.path / "trace"),
        "-e",
        "trace=write,pwrite64,fsync,fdatasync",
    ]
    refresher = [sys.executable, "-m", "refresher", "run-once", "--force"]
    cost(*strace, *refresher, environment=home.environment, directory=home.path)
    calls = [line for path in home.path.glob("trace.*") for line in path.read_text().splitlines()]
    syncs = [line for line in calls if line.startswith(("fsync", "fdatasync"))]
    state = f"{home.directories.state}/"
    written = [int(match[2]) for line in calls if (match := _WRITE.match(line)) and match[1].startswith(state)]
    return len(syncs), sum(written)
