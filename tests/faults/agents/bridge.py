"""``refresher stdio`` while its server is killed at random: each request has one answer, and it is true.

A request that only reads ends in its result. A write ends in its result, or in an error; it is executed once if there is
a result, not at all if the error says so, and never twice.
"""

import asyncio
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.published import Published
from tests.support.warm import WarmProcess, stub

__all__ = ["BridgeRound", "run", "text"]

_ROOT: Final = Path(__file__).parent.parent.parent.parent
_CALLERS: Final = 12
_LONGEST: Final = 150.0


class BridgeRound(NamedTuple):
    """What a round did, and the violations that it found."""

    outcomes: Counter[str]
    kills: int
    violations: list[str]


def run(seed: str, seconds: float, ending: threading.Event) -> BridgeRound:
    """Kill the server for ``seconds``, or until ``ending``, and check everything."""
    with tempfile.TemporaryDirectory(prefix="bridge-", ignore_cleanup_errors=True) as root:
        return asyncio.run(_round(Path(root), seed, seconds, ending))


def text(result: BridgeRound) -> str:
    """Return the figures of the report."""
    ends = ", ".join(f"{count} {outcome}" for outcome, count in result.outcomes.most_common())
    return "\n".join(
        (
            f"bridge calls     {result.outcomes.total()} with {result.kills} kills ({ends})",
            f"bridge problems  {len(result.violations)}",
            *(f"VIOLATION at the bridge: {violation}" for violation in result.violations),
        )
    )


class _Server:
    """A process that is killed, and started again at the same port."""

    def __init__(self, place: Path, seed: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.kills = 0
        self._seed = seed
        self._notes = place / "executed"
        self.start()

    def start(self) -> None:
        """Start it; return when it listens."""
        arguments = [str(self.port), str(self._notes), f"{self._seed} {self.kills}"]
        self._process = WarmProcess(
            ["tests.servers.mcp_killed", *arguments], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the server did not start"

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate()
        self.kills += 1

    def executed(self) -> Counter[str]:
        """Return how often each write was executed."""
        return Counter(self._notes.read_text().split())


class _Client:
    """An MCP client on the streams of the command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self._stdout = process.stdin, process.stdout
        self.asked: dict[str, asyncio.Future[None]] = {}
        self.answers: dict[str, list[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Read the answers until the command ends."""
        async for line in self._stdout:
            message = json.loads(line)
            if "method" not in message:
                self.answers.setdefault(message["id"], []).append(message)
                if message["id"] in self.asked and not self.asked[message["id"]].done():
                    self.asked[message["id"]].set_result(None)

    def says(self, method: str, **more: Any) -> None:
        """Write a message."""
        self.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method, **more}).encode() + b"\n")

    async def asks(self, request_id: str, method: str, **params: Any) -> None:
        """Send a request, and wait for its answer."""
        self.asked[request_id] = asyncio.get_running_loop().create_future()
        self.says(method, id=request_id, params=params)
        await self.asked[request_id]


@asynccontextmanager
async def _bridge(place: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = stub("refresher", "--state-dir", str(place), "stdio", "linear", "--wait", "80s")
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _round(root: Path, seed: str, seconds: float, ending: threading.Event) -> BridgeRound:
    rng, server = random.Random(seed), _Server(root, seed)
    origin = f"http://127.0.0.1:{server.port}"
    Published(root, origin).put(1, server_url=f"{origin}/mcp")
    over = asyncio.Event()
    violations: list[str] = []

    async def call(caller: int) -> None:
        mine, number = random.Random(f"{seed} {caller}"), 0
        while not over.is_set():
            number += 1
            if mine.random() < 0.3:
                await client.asks(f"list-{caller}-{number}", "tools/list")
            else:
                name = f"write-{caller}-{number}"
                await client.asks(name, "tools/call", name="write", arguments={"what": name})

    async with _bridge(root) as process:
        client = _Client(process)
        reading = asyncio.create_task(client.read())
        about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        await client.asks("initialize", "initialize", **about)
        client.says("notifications/initialized")
        calling = [asyncio.create_task(call(caller)) for caller in range(_CALLERS)]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not ending.is_set():
            await asyncio.sleep(rng.uniform(0.02, 0.4))
            server.kill()
            await asyncio.sleep(rng.choice((0, rng.uniform(0, 0.1))))
            server.start()
        over.set()
        await asyncio.wait(calling, timeout=_LONGEST)
        client.stdin.close()
        try:
            async with asyncio.timeout(_LONGEST):
                if await process.wait():
                    violations.append(f"the command ended with {process.returncode}")
                await reading
        except TimeoutError:
            violations.append("the command did not end when its client had closed stdin")
        for task in (*calling, reading):
            task.cancel()
    server.kill()
    outcomes: Counter[str] = Counter()
    for name in {*client.asked, *client.answers}:
        outcomes[_check(name, client.answers.get(name, []), server.executed()[name], violations)] += 1
    return BridgeRound(outcomes, server.kills - 1, violations)


def _check(name: str, answers: list[dict[str, Any]], executed: int, violations: list[str]) -> str:
    """Return what a request ended in."""
    said = str(answers[0].get("error", {}).get("message")) if answers else ""
    outcome = "error"
    allowed: tuple[int, ...] = ()
    if len(answers) == 1 and "result" in answers[0]:
        outcome, allowed = "result", (int(name.startswith("write")),)
    elif len(answers) == 1 and name.startswith("write"):
        allowed = (0, 1) if "may have been executed" in said else (0,) if "was not executed" in said else ()
    if executed not in allowed:
        violations.append(f"{name} has {len(answers)} answers, and was executed {executed} times: {said}")
    return f"{name.partition('-')[0]} {outcome}"
