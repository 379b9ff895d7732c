"""How late does ``run`` rotate, when grants with short lives become due all the time?"""

import json
import random
import sys
import time
from typing import Final

from refresher.grants import policy
from tests.bench.homes import Home, new_grants
from tests.bench.measuring import CannotRun, Run, cost, percentile
from tests.bench.server import Server

__all__ = ["measure"]

_SERVERS: Final = 100
_SHORTEST: Final = 10.0
_BARE_SECONDS: Final = 10.0
"""How long the counterpart runs, with as many requests a second."""


def measure(run: Run) -> None:
    """Compare when the server got the first request of each grant with when it was due."""
    lives, size = random.Random(7), run.count(1000)
    longest = 20.0 if run.quick else 60.0
    with Server(_SERVERS) as server:
        life = [lives.uniform(_SHORTEST, longest) for _ in range(size)]
        grants = list(new_grants(size, endpoint=server.endpoint, life=lambda number: life[number]))
        due = {grant.client_id: policy.due_at(grant) for grant in grants}
        last = max(due.values())
        run.say(f"run with {size:,} grants whose tokens live {_SHORTEST:g} to {longest:g} s")
        with Home(run.root / "lateness", grants).daemon():
            time.sleep(last - time.time() + 2)
        came: dict[str, float] = {}
        for each in server.log():
            came.setdefault(each.client, each.came)
        if missing := due.keys() - came.keys():
            raise CannotRun(f"{len(missing)} of {size:,} grants were not rotated")
        late = [came[client] - at for client, at in due.items()]
        bare = _bare(server, int(size * _BARE_SECONDS / (last - min(due.values()))))
    run.note("lateness.p99", [(1000 * percentile(late, 99), 1000 * percentile(bare, 99))])
    half, most = 1000 * percentile(late, 50), 1000 * max(late)
    run.results.notes.append(
        f"lateness of {size:,} grants: half of them at most {half:.0f} ms, all at most {most:.0f} ms"
    )


def _bare(server: Server, count: int) -> list[float]:
    """Return by how much the requests of a program with nothing but timers are late."""
    times = [_BARE_SECONDS * number / count for number in range(count)]
    requests = [(server.endpoint(number), f"bare{number}/60", at) for number, at in enumerate(times)]
    before = len(server.log())
    done = cost(sys.executable, "-m", "tests.bench.bare_posts", stdin=json.dumps(requests))
    began = float(done.output.split()[1])
    came = {each.client: each.came for each in server.log()[before:]}
    return [came[f"bare{number}/60"] - began - at for number, at in enumerate(times)]
