"""Many processes with the same grants, and one that is stopped while it holds a lock (I3)."""

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

# --- many processes -----------------------------------------------------------------------------------------------

SECONDS = 15.0
EXCHANGES = 60
"""The test runs longer if there are fewer."""
MOST_STARTS = 1500
CLIENTS = {"linear": "basic", "notion": "post", "slack": "public", "figma": "public"}

# An agent: it reads, demands a token that is too old, and counts generations that decrease. It ends with its stdin.
READER = """
import json, select, sys
from shim import FileTokenSource

sources = [FileTokenSource(name) for name in sys.argv[1:]]
seen, reads, decreases = [-1] * len(sources), 0, 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for number, source in enumerate(sources):
        token = source.current()
        reads += 1
        decreases += token.generation < seen[number]
        seen[number] = token.generation
        source.token(min_valid=0.5, wait=60)
print(json.dumps({"reads": reads, "decreases": decreases}))
"""


class Role(NamedTuple):
    """Commands that run one after the other; ``allowed``: their exit codes."""

    commands: Iterator[tuple[str, ...]]
    allowed: frozenset[int] = frozenset({0})


def imports(refresher: Command, server: OIDC, file: str, *options: str) -> Iterator[tuple[str, ...]]:
    """Import a new login for one name after the other."""
    for number, (name, client) in enumerate(itertools.cycle(CLIENTS.items())):
        path = refresher.write_import(f"{file}-{number}", server.mint(client))
        yield "import", name, "--from", str(path), *options


def roles_of(refresher: Command, server: OIDC) -> list[Role]:
    """Return eleven roles; with three daemons and two readers, sixteen processes run."""
    runs = [Role(itertools.repeat(("run-once", *more))) for more in [(), ("--force",)] * 3]
    return [
        *runs,
        Role(imports(refresher, server, "first", "--replace")),
        Role(imports(refresher, server, "second", "--replace")),
        Role(imports(refresher, server, "third"), frozenset({2})),
        *(Role(("token", name) for name in itertools.cycle(CLIENTS)) for _ in range(2)),
    ]


def test_sixteen_processes_on_four_grants_make_one_exchange_for_each_generation(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a user who starts a second process would lose logins (I3)."""
    server = own_oidc(accessTokenTtl=2)
    for name, client in CLIENTS.items():
        refresher.import_grant(name, server.mint(client))
    assert refresher("run-once").code == 0
    replaced: Counter[str] = Counter()
    starts = 0
    began = time.monotonic()
    ends = began + SECONDS
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
        running_commands: dict[int, subprocess.Popen[str]] = {}
        arguments: dict[int, tuple[str, ...]] = {}
        roles = dict(enumerate(roles_of(refresher, server)))
        while running_commands or time.monotonic() < ends:
            for number, role in roles.items():
                process = running_commands.get(number)
                if process is not None and process.poll() is not None:
                    done = refresher.finish(running_commands.pop(number))
                    assert done.code in role.allowed, (arguments[number], done)
                    if "--replace" in arguments[number]:
                        replaced[CLIENTS[arguments[number][1]]] += 1
                if number not in running_commands and time.monotonic() < ends and starts < MOST_STARTS:
                    arguments[number] = next(role.commands)
                    running_commands[number] = refresher.start(*arguments[number])
                    starts += 1
            if time.monotonic() > ends and len(server.requests()) < EXCHANGES and ends < began + 5 * SECONDS:
                ends = time.monotonic() + 5
            time.sleep(0.01)  # between two checks for ended commands
        seen = [reader.communicate("", timeout=150) for reader in readers]
        logs = [stopped(refresher, daemon) for daemon in daemons]
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} == {200}
    generations: Counter[str] = Counter()
    for name, client in CLIENTS.items():
        generations[client] += refresher.grant(name).generation
        assert refresher.token(name).generation == refresher.grant(name).generation
        assert server.introspect(refresher.refresh_token(name))["active"], f"{name} is lost"
    exchanges = Counter(request["client_id"] for request in log["requests"])
    assert generations == exchanges + replaced, "an exchange without a generation, or a generation without its exchange"
    for stdout, stderr in seen:
        assert json.loads(stdout)["decreases"] == 0, stderr
    assert refresher.leftovers() == []
    assert not any("fault" in lines or "failed" in lines for lines in logs), logs
    assert len(log["requests"]) >= EXCHANGES, "too few exchanges for a race"
    done = refresher("run-once", "--force", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"rotated"}
    for name in CLIENTS:
        token = refresher.token(name)
        live = server.introspect(token.access_token)["active"]
        # The server counts in whole seconds: its tokens end up to a second earlier.
        assert live or time.time() > (token.expires_at or 0) - 1


# --- a stopped holder of a lock -----------------------------------------------------------------------------------


def test_a_process_that_is_stopped_during_an_exchange_keeps_its_lock_and_saves_its_answer(
    refresher: Command,
) -> None:
    """If it failed, Ctrl-Z would cost a login: others would take its lock, or a deadline would discard its answer (I3, I6)."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server, TokenServer(lambda _: 20) as other:
        refresher.import_grant("linear", server.grant("slow"))
        refresher.import_grant("notion", other.grant("other"))
        assert refresher("run-once", "notion").code == 0
        holder = refresher.start("run-once", "--json", "linear")
        assert gate.reached.wait(60)
        wait_until(lambda: under_way(refresher), "an exchange is under way")
        holder.send_signal(signal.SIGSTOP)
        # The answer arrives while the process is stopped, for longer than the deadline of 20 s.
        gate.opened.set()
        with running(refresher) as daemon:
            before = published(refresher, "notion")
            waiting = refresher("run-once", "--json", "linear")
            assert (waiting.code, waiting.outcome) == (6, "lock_busy")
            assert "fuser" in waiting.results["linear"]["detail"]
            assert published(refresher, "notion") > before, "the other grant did not rotate meanwhile"
            # Rotation is due after 15 s; the run has waited 30 s.
            times = other.asked["other"]
            assert all(later < earlier + 20 for earlier, later in itertools.pairwise(times)), "a token has expired"
            assert len(server.asked["slow"]) == 1
            assert under_way(refresher), "another process has settled the attempt"
            holder.send_signal(signal.SIGCONT)
            done = refresher.finish(holder)
            assert (done.code, done.outcome) == (0, "rotated")
            assert published(refresher) == 1
            log = stopped(refresher, daemon)
        assert "linear: lock_busy" in log
        assert refresher.leftovers() == []
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["slow"]), server.reused, other.reused) == (2, 0, 0)
