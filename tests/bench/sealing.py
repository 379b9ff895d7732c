"""What does a seal cost: a rotation, its bytes, and a run with nothing due?"""

import base64
import os
from pathlib import Path
from typing import Final

from tests.bench.homes import Home, new_grants
from tests.bench.measuring import Run
from tests.bench.rotation import rotated, traced_rotation
from tests.bench.server import Server

__all__ = ["measure"]

_ROUNDS: Final = 15
_IDLE_ROUNDS: Final = 7
_IDLE: Final = 1000


def measure(run: Run) -> None:
    """Measure a sealed grant beside a plain one."""
    run.say("sealed grants")
    key = _key(run.root / "seal.key")
    with Server() as server:
        plain, sealed = (
            Home(run.root / name, new_grants(1, prefix="rotated", endpoint=server.endpoint), key=source)
            for name, source in (("plain", None), ("sealed", key))
        )
        pairs = [(rotated(sealed, number + 1), rotated(plain, number + 1)) for number in range(_ROUNDS + 1)][1:]
        run.note("sealing.rotation", [(ours.wall, theirs.wall) for ours, theirs in pairs])
        run.note("sealing.cpu", [(ours.cpu, theirs.cpu) for ours, theirs in pairs])
        _, ours = traced_rotation(sealed)
        _, theirs = traced_rotation(plain)
        run.note("sealing.bytes", [(ours / 1024, theirs / 1024)])
        sizes = [home.directories.record("rotated-0").stat().st_size / 1024 for home in (sealed, plain)]
        run.note("sealing.record", [(sizes[0], sizes[1])])
    homes = [
        Home(run.root / f"idle-{name}", new_grants(run.count(_IDLE)), key=source)
        for name, source in (("plain", None), ("sealed", key))
    ]
    homes[1].environment["REFRESHER_ENCRYPTION_KEY"] = f"file:{run.root / 'no.key'}"
    costs = []
    for _ in range(_IDLE_ROUNDS):
        for home in homes:
            (home.directories.rest_index).unlink(missing_ok=True)  # so that each record is read
        theirs_cpu, ours_cpu = (1000 * home.refresher("run-once").cpu for home in homes)
        costs.append((ours_cpu, theirs_cpu))
    run.note("sealing.idle", costs)


def _key(path: Path) -> str:
    path.touch(mode=0o600)
    path.write_bytes(base64.b64encode(os.urandom(32)))
    return f"file:{path}"
