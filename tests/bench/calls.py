"""Is a call with a valid token as fast as with a fixed header, also among many calls?

Each way to get the token has a process of its own (``tests.bench.calls_program``). They make their rounds in turn.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal

from tests.bench.measuring import ROOT, CannotRun, Run, pairs
from tests.bench.server import Server
from tests.support import fastmcp_login
from tests.support.published import Published
from tests.support.stage import Stage

__all__ = ["measure"]

_CALLS: Final = 50
_SECONDS: Final = 0.05
"""The time that the server takes for each."""

_SLOW: Final = 0.4
_ROUNDS: Final = 9
_SLOW_ROUNDS: Final = 2
"""For providers that make one call after the other."""

_FASTMCP: Final = str(ROOT / ".venv/fastmcp/bin/python")


def measure(run: Run) -> None:
    """Measure requests, then tool calls."""
    run.say(f"{_CALLS} requests at once")
    with Server() as server:
        published = Published(run.root / "requests", server.origin)
        published.put(1)
        _compare(run, "http", server.origin, published)
    run.say(f"{_CALLS} tool calls at once, and a quick call beside a slow one")
    with Stage() as stage:
        published = Published(run.root / "tool-calls", stage.url.removesuffix("/mcp"))
        published.put(1)
        stage.play(tokens=["access-token-1"])
        _compare(run, "mcp", stage.url, published)
    if (reason := fastmcp_login.missing()) is not None:
        raise CannotRun(reason)


def _compare(run: Run, layer: Literal["http", "mcp"], url: str, published: Published) -> None:
    plan = {"layer": layer, "url": url, "tokens": str(published.tokens), "demands": str(published.demands)}
    slow_rounds = 1 if run.quick else _SLOW_ROUNDS
    with ExitStack() as ends:
        ours = ends.enter_context(_agent(sys.executable, plan | {"way": "shim"}))
        fixed = ends.enter_context(_agent(sys.executable, plan | {"way": "fixed"}))
        many: dict[str, Any] = {"calls": _CALLS, "seconds": _SECONDS, "beside": 0}
        quick: dict[str, Any] = {"calls": 1, "seconds": 0, "beside": _SLOW}
        for agent in (ours, fixed):
            agent(many)  # connects
        run.note(f"calls.{layer}", pairs(_ROUNDS, lambda: ours(many), lambda: fixed(many)))
        if layer == "mcp":
            run.note("calls.beside", pairs(_ROUNDS, lambda: ours(quick), lambda: fixed(quick)))
        for way, python in {"sdk": sys.executable, "fastmcp": _FASTMCP}.items():
            if way == "fastmcp" and fastmcp_login.missing() is not None:
                continue
            with _agent(python, plan | {"way": way}) as theirs:
                theirs(quick)
                run.note(f"calls.{layer}_{way}", pairs(slow_rounds, lambda: ours(many), lambda: theirs(many)))
                if (layer, way) == ("mcp", "sdk"):
                    run.note("calls.beside_sdk", pairs(slow_rounds, lambda: ours(quick), lambda: theirs(quick)))


@contextmanager
def _agent(python: str, plan: dict[str, str]) -> Iterator[Callable[[dict[str, Any]], float]]:
    """Run an agent; calling it makes a round and returns its milliseconds."""
    with subprocess.Popen(
        [python, "-m", "tests.bench.calls_program", json.dumps(plan)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def make(calls: dict[str, Any]) -> float:
            print(json.dumps(calls), file=process.stdin, flush=True)
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                process.kill()
                last = process.stderr.read().strip().splitlines()[-1:] if process.stderr else []
                raise CannotRun(f"the agent ({plan['way']}) ended: {' '.join(last)}")
            return 1000 * float(line)

        try:
            yield make
        finally:
            process.kill()
