"""Does an import take the same for each grant, however many there are?"""

import json
import time
from pathlib import Path
from typing import Final

from tests.bench.homes import Home
from tests.bench.measuring import CannotRun, Run
from tests.bench.rotation import write_durably

__all__ = ["measure"]

_LONGEST: Final = 60.0


def measure(run: Run) -> None:
    """Import directories of several sizes; the largest one only if it takes at most a minute."""
    third, some, many = run.count(600) // 3, run.count(600), run.count(3000)
    start_up = _import(run, 0)[0]
    seconds = {size: _import(run, size)[0] - start_up for size in (third, some)}
    each = [1000 * seconds[size] / size for size in (some, third)]
    run.note("imports.linear", [(each[0], each[1])])
    # If the time of each grant has grown with their number, it goes on growing.
    growth = max(each[0] / each[1] - 1, 0) / 2 * (many / some - 1) + 1
    expected = seconds[some] * many / some * growth
    if expected > _LONGEST:
        raise CannotRun(f"{some:,} took {seconds[some]:.1f} s, so {many:,} would take about {expected:.0f} s")
    run.note("imports.many", [_import(run, many)])


def _import(run: Run, count: int) -> tuple[float, float]:
    """Import ``count`` grants; return the seconds, and those of as many durable files."""
    run.say(f"import --from a directory of {count:,} grants")
    home, source = Home(run.root / f"imports-{count}"), run.root / f"source-{count}"
    source.mkdir(mode=0o700)
    for number in range(count):
        _write_source(source / f"grant-{number}.json", number)
    took = home.refresher("import", "--from", str(source)).wall
    began = time.perf_counter()
    for _ in range(count):
        write_durably(home.path / "bare.json")
    return took, time.perf_counter() - began


def _write_source(path: Path, number: int) -> None:
    fields = {
        "token_endpoint": f"https://as{number % 50}.example/token",
        "client_id": "client",
        "refresh_token": f"refresh-token-{number}",
        "server_url": "https://mcp.example/mcp",
        "access_token": f"access-token-{number}",
        "expires_in": 36_000,
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(fields))
