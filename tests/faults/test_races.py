"""Many processes on the same grants, and one of them that stops with a lock in its hands (I3)."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from tests.support.command import Command, wait_until
from tests.support.daemon import published, running, stopped, under_way
from tests.support.oidc import OIDC
from tests.support.token_server import Gate, TokenServer

Start = Callable[..., OIDC]

# --- the crowd ----------------------------------------------------------------------------------------------------

SECONDS = 60.0
MOST_STARTS = 1500
CLIENTS = {"linear": "basic", "notion": "post", "slack": "public", "figma": "public"}

# An agent: it reads, demands what is too old, and never sees a generation fall. It ends with its stdin.
READER = """
import json, select, sys
from shim import FileTokenSource

sources = [FileTokenSource(name) for name in sys.argv[1:]]
seen, reads, fell = [-1] * len(sources), 0, 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for number, source in enumerate(sources):
        token = source.current()
        reads += 1
        fell += token.generation < seen[number]
        seen[number] = token.generation
        source.token(min_valid=0.5, wait=15)
print(json.dumps({"reads": reads, "fell": fell}))
"""


class Role(NamedTuple):
    """What one of the crowd does, again and again; ``allowed``: its exit codes."""

    commands: Iterator[tuple[str, ...]]
    allowed: frozenset[int] = frozenset({0})


def imports(refresher: Command, server: OIDC, who: str, *options: str) -> Iterator[tuple[str, ...]]:
    """Bring a new login for one name after the other."""
    for number, (name, client) in enumerate(itertools.cycle(CLIENTS.items())):
        path = refresher.write_import(f"{who}-{number}", server.mint(client))
        yield "import", name, "--from", str(path), *options


def crowd(refresher: Command, server: OIDC) -> list[Role]:
    """Return eleven roles; three daemons and two readers make them sixteen."""
    runs = [Role(itertools.repeat(("run-once", *more))) for more in [(), ("--force",)] * 3]
    return [
        *runs,
        Role(imports(refresher, server, "a-person", "--replace")),
        Role(imports(refresher, server, "another", "--replace")),
        Role(imports(refresher, server, "a-script"), frozenset({2})),
        *(Role(("token", name) for name in itertools.cycle(CLIENTS)) for _ in range(2)),
    ]


def test_sixteen_processes_on_four_grants_make_one_exchange_for_each_generation(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a person who starts one process too many would lose his logins (I3)."""
    server = own_oidc(accessTokenTtl=2)
    for name, client in CLIENTS.items():
        refresher.import_grant(name, server.mint(client))
    assert refresher("run-once").code == 0
    replaced: Counter[str] = Counter()
    starts = 0
    ends = time.monotonic() + SECONDS
    with ExitStack() as stack:
        daemons = [stack.enter_context(running(refresher)) for _ in range(3)]
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, *CLIENTS],
                env=refresher.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        at_work: dict[int, subprocess.Popen[str]] = {}
        asked_for: dict[int, tuple[str, ...]] = {}
        roles = dict(enumerate(crowd(refresher, server)))
        while at_work or time.monotonic() < ends:
            for number, role in roles.items():
                process = at_work.get(number)
                if process is not None and process.poll() is not None:
                    done = refresher.finish(at_work.pop(number))
                    assert done.code in role.allowed, (asked_for[number], done)
                    if "--replace" in asked_for[number]:
                        replaced[CLIENTS[asked_for[number][1]]] += 1
                if number not in at_work and time.monotonic() < ends and starts < MOST_STARTS:
                    asked_for[number] = next(role.commands)
                    at_work[number] = refresher.start(*asked_for[number])
                    starts += 1
            time.sleep(0.01)  # between two looks at who has ended
        seen = [reader.communicate("", timeout=60) for reader in readers]
        said = [stopped(refresher, daemon) for daemon in daemons]
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} == {200}
    generations: Counter[str] = Counter()
    for name, client in CLIENTS.items():
        generations[client] += refresher.grant(name).generation
        assert refresher.token(name).generation == refresher.grant(name).generation
        assert server.introspect(refresher.refresh_token(name))["active"], f"{name} is lost"
    asked = Counter(request["client_id"] for request in log["requests"])
    assert generations == asked + replaced, "an exchange without a generation, or a generation without its exchange"
    for told, trouble in seen:
        assert json.loads(told)["fell"] == 0, trouble
    assert refresher.leftovers() == []
    assert not any("fault" in words or "failed" in words for words in said), said
    assert len(log["requests"]) > 4 * SECONDS / 2, "they were too idle for a race"
    done = refresher("run-once", "--force", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"rotated"}
    for name in CLIENTS:
        token = refresher.token(name)
        live = server.introspect(token.access_token)["active"]
        assert live or time.time() > (token.expires_at or 0)


# --- a holder that stands still -----------------------------------------------------------------------------------


def test_a_holder_that_is_stopped_in_mid_exchange_is_waited_for_and_saves_its_answer_when_it_goes_on(
    refresher: Command,
) -> None:
    """If it failed, a Ctrl-Z would cost a login: stolen by those who wait, or thrown away by a deadline (I3, I6)."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server, TokenServer(lambda _: 4) as quick:
        refresher.import_grant("linear", server.grant("slow"))
        refresher.import_grant("notion", quick.grant("quick"))
        assert refresher("run-once", "notion").code == 0
        holder = refresher.start("run-once", "--json", "linear")
        assert gate.reached.wait(30)
        wait_until(lambda: under_way(refresher), "an exchange is under way")
        holder.send_signal(signal.SIGSTOP)
        # The answer comes while it is stopped, and lies there beyond the deadline of 20 s.
        gate.opened.set()
        with running(refresher) as daemon:
            before = published(refresher, "notion")
            waiting = refresher("run-once", "--json", "linear")
            assert (waiting.code, waiting.outcome) == (6, "lock_busy")
            assert "fuser" in waiting.results["linear"]["detail"]
            assert published(refresher, "notion") > before + 5, "others were not rotated meanwhile"
            times = quick.asked["quick"]
            assert all(later < earlier + 4 for earlier, later in itertools.pairwise(times)), "a token had ended"
            assert len(server.asked["slow"]) == 1
            assert under_way(refresher), "somebody else has settled it"
            holder.send_signal(signal.SIGCONT)
            done = refresher.finish(holder)
            assert (done.code, done.outcome) == (0, "rotated")
            assert published(refresher) == 1
            said = stopped(refresher, daemon)
        assert "linear: lock_busy" in said
        assert refresher.leftovers() == []
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["slow"]), server.reused, quick.reused) == (2, 0, 0)
