"""Agents with ``ReconnectingClient`` on two servers, and the faults around them; what they promise is checked.

- No call lasts longer than its patience allows, and each ends in a result or in an error that the README lists.
- No write is executed twice, and none whose caller was told that nothing was changed.
- After the faults, each listener hears the server again, and has heard of every change before.
"""

import random
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.abc
import mcp_types

from shim import InsufficientScope, ReauthorizationRequired, TokenRejected, TokenUnavailable
from shim.mcp import OutcomeUnknown, ReconnectingClient, ServerAway
from tests.faults.agents.faults import Faults
from tests.faults.agents.site import Site, Tokens
from tests.support.mirror import Mirror

__all__ = ["Chaos", "Round"]

LISTENERS: Final = 10
"""Half of them for each protocol."""
CALLERS: Final = 4
"""For each listener, on the same client."""
PATIENCE: Final = 5.0
WAIT: Final = 3.0
LONGEST: Final = PATIENCE + WAIT + 30.0
"""A call waits for a server, and for a token; the rest is for a handshake, for the call itself and for a busy machine."""
CALM: Final = 150.0
"""The longest pauses of a client after many failures are 45 and 75 seconds."""

_DOCUMENTED: Final = (
    InsufficientScope,
    OutcomeUnknown,
    ReauthorizationRequired,
    ServerAway,
    TokenRejected,
    TokenUnavailable,
)


class Round(NamedTuple):
    """What a round did, and the violations that it found."""

    outcomes: Counter[str]
    faults: Counter[str]
    heard: int
    worst: float
    """The longest call, in seconds."""
    calm: float
    """Seconds from the last fault until every listener heard its server."""
    violations: list[str]


class Chaos:
    """One round. The same ``seed`` does the same again, as far as the system allows."""

    def __init__(self, seed: str) -> None:
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self._seed = seed
        self._worst = 0.0
        self._writes: dict[str, str] = {}
        """What each write ended in."""
        self._mirrors: list[tuple[Site, Mirror]] = []
        self._under_way: Counter[str] = Counter()
        self._faults_over = anyio.Event()

    async def run(self, seconds: float, interrupted: threading.Event | None = None) -> Round:
        """Cause faults for so long, and check everything."""
        async with AsyncExitStack() as stack:
            place = tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)
            root = Path(stack.enter_context(place))
            sites = [
                await stack.enter_async_context(_site(root / name, json=name == "json")) for name in ("json", "sse")
            ]
            tokens = Tokens(root / "published", sites)
            faults = Faults(self._seed, sites, tokens)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(tokens.serve_demands)
            for number in range(LISTENERS):
                await self._start_agent(number, sites[number // 2 % 2], tokens, stack, tasks)
            for site in sites:
                tasks.start_soon(self._notify_again_and_again, site)
            await faults.run(seconds, interrupted or threading.Event())
            self._faults_over.set()
            calm = await self._calm(sites)
            self._check_writes(sites)
            tasks.cancel_scope.cancel()
        heard = sum(mirror.heard for _, mirror in self._mirrors)
        return Round(self.outcomes, faults.counts, heard, self._worst, calm, self.violations)

    # --- agents ---------------------------------------------------------------------------------------------------

    async def _start_agent(
        self, number: int, site: Site, tokens: Tokens, stack: AsyncExitStack, tasks: anyio.abc.TaskGroup
    ) -> None:
        mode = "legacy" if number % 2 else "auto"
        mirror = Mirror(listens=mode == "auto")
        self._mirrors.append((site, mirror))
        options: dict[str, Any] = {"mode": mode, "message_handler": mirror.on_message, "elicitation_callback": _answer}
        client = ReconnectingClient(
            site.balancer.url, tokens.source, patience=PATIENCE, wait=WAIT, reads=_reads, **options
        )
        await stack.enter_async_context(client)
        tasks.start_soon(mirror.run, client)
        for caller in range(CALLERS):
            # In JSON and the older protocol, the server has no way to ask during a call.
            asks = mode == "auto" or not site.json
            tasks.start_soon(self._call_again_and_again, client, f"{number}.{caller}", asks)

    async def _call_again_and_again(self, client: ReconnectingClient, caller: str, asks: bool) -> None:
        rng = random.Random(f"{self._seed} {caller}")
        number = 0
        while not self._faults_over.is_set():
            number += 1
            calls: dict[str, dict[str, Any]] = {
                "add": {"a": 1, "b": number},
                "write": {"what": f"{caller}.{number}"},
                "slow": {"seconds": rng.uniform(0.0, 1.0)},
                "ask": {},
            }
            ((tool, arguments),) = rng.choices([*calls.items()], [4, 4, 1, asks])
            self._under_way[caller] += 1
            outcome = await self._call(client, tool, arguments, rng.uniform(0.0, 1.0) if rng.random() < 0.05 else None)
            self._under_way[caller] -= 1
            self.outcomes[outcome] += 1
            if tool == "write":
                self._writes[arguments["what"]] = outcome
            await anyio.sleep(rng.uniform(0.0, 0.3))

    async def _call(
        self, client: ReconnectingClient, tool: str, arguments: dict[str, Any], cancel: float | None
    ) -> str:
        """Return ``result``, the name of an error, or ``cancelled`` after so many seconds."""
        began = anyio.current_time()
        outcome = "cancelled"
        with anyio.move_on_after(LONGEST * 2 if cancel is None else cancel):
            try:
                result = await client.call_tool(tool, arguments)
                outcome = "result"
                if result.is_error:
                    outcome = "error of the tool"
                    if tool != "ask":  # the server gives a question up when its connection ends
                        self.violations.append(f"{tool} ended in {result.content}")
            except _DOCUMENTED as error:
                outcome = type(error).__name__
                if isinstance(error, OutcomeUnknown) and _reads(tool):
                    self.violations.append(f"{tool}, which only reads, was not repeated: {error}")
            except Exception as error:  # noqa: BLE001  this is what the test looks for
                outcome = f"undocumented {type(error).__name__}"
                self.violations.append(f"{tool} raised {error!r}")
        took = anyio.current_time() - began
        if cancel is None:
            self._worst = max(self._worst, took)
        if took > LONGEST:
            self.violations.append(f"{tool} took {took:.1f} s and ended in {outcome}")
        return outcome

    async def _notify_again_and_again(self, site: Site) -> None:
        while not self._faults_over.is_set():
            async with site.lock:  # while the server is there
                await anyio.to_thread.run_sync(site.server.notify)
            await anyio.sleep(0.3)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _calm(self, sites: list[Site]) -> float:
        """Return after how many seconds without faults each listener hears its server, and no call is under way."""
        began = anyio.current_time()
        deaf = self._mirrors
        with anyio.move_on_after(CALM):
            while deaf or self._under_way.total():
                before = [mirror.heard for _, mirror in self._mirrors]
                for site in sites:
                    await anyio.to_thread.run_sync(site.server.notify)
                with anyio.move_on_after(1.0):
                    while deaf := self._not_current(before):
                        await anyio.sleep(0.02)
                await anyio.sleep(0.1)
        for site, mirror in deaf:
            number = [each for _, each in self._mirrors].index(mirror)
            self.violations.append(
                f"listener {number} is deaf: it has version {mirror.version} of {site.server.version}, "
                f"and heard {mirror.heard}; events {dict(mirror.events)}, errors {dict(mirror.errors)}"
            )
        for caller, count in self._under_way.items():
            if count:
                self.violations.append(f"a call of {caller} does not end")
        return anyio.current_time() - began

    def _not_current(self, before: list[int]) -> list[tuple[Site, Mirror]]:
        return [
            (site, mirror)
            for heard, (site, mirror) in zip(before, self._mirrors, strict=True)
            if mirror.heard == heard or mirror.version != site.server.version
        ]

    def _check_writes(self, sites: list[Site]) -> None:
        executed = sum((site.server.executed() for site in sites), Counter[str]())
        for what, outcome in self._writes.items():
            unknown = ("OutcomeUnknown", "cancelled", "error of the server")
            allowed = (0, 1) if outcome in unknown else (int(outcome == "result"),)
            if executed[what] not in allowed:
                self.violations.append(f"write {what} ended in {outcome}, and was executed {executed[what]} times")


@asynccontextmanager
async def _site(directory: Path, *, json: bool) -> AsyncIterator[Site]:
    site = Site(directory, json=json)
    await anyio.to_thread.run_sync(site.server.start)
    try:
        async with site.balancer_of():
            yield site
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(site.server.stop)


def _reads(tool: str) -> bool:
    return tool in ("add", "version")


async def _answer(_: Any, __: Any) -> mcp_types.ElicitResult:
    return mcp_types.ElicitResult(action="accept", content={"said": "blue"})
