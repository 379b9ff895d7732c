"""Random faults of connections, tokens, logins and servers; several at a time, each is undone after a while."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio

from tests.faults.agents.site import Site, Tokens
from tests.support.balancer import Decision, Request

__all__ = ["Faults"]

_PAUSE: Final = (0.05, 0.6)
"""Seconds between two faults."""


class Faults:
    """Causes faults at random by ``seed``."""

    def __init__(self, seed: str, sites: list[Site], tokens: Tokens) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(f"{seed} faults")
        self._sites = sites
        self._tokens = tokens
        self._table: list[tuple[str, float, Callable[[random.Random], Coroutine[Any, Any, None]]]] = [
            ("some connections cut", 6, self._cut_some),
            ("streams cut", 6, self._cut_streams),
            ("requests disturbed", 4, self._disturb),
            ("server killed", 2, lambda rng: self._restart(rng, kill=True)),
            ("server restarted", 1, lambda rng: self._restart(rng, kill=False)),
            ("connections refused", 2, self._refuse_connections),
            ("token rotated", 3, self._rotate),
            ("token refused", 3, self._refuse),
            ("token refused, and the new one is late", 1, self._refuse_for_long),
            ("login ended", 0.5, self._end_login),
        ]

    async def run(self, seconds: float, interrupted: threading.Event) -> None:
        """Cause faults for so long; return when all are undone, with a token that the servers accept."""
        ends = anyio.current_time() + seconds
        async with anyio.create_task_group() as tasks:
            while anyio.current_time() < ends and not interrupted.is_set():
                weights = [weight for _, weight, _ in self._table]
                ((what, _, fault),) = self._random.choices(self._table, weights)
                self.counts[what] += 1
                tasks.start_soon(fault, random.Random(self._random.random()))
                await anyio.sleep(self._random.uniform(*_PAUSE))
        self._tokens.rotate()

    # --- connections ----------------------------------------------------------------------------------------------

    async def _cut_some(self, rng: random.Random) -> None:
        share = rng.choice((0.1, 0.5, 1.0))
        self._site(rng).balancer.cut(lambda _: rng.random() < share)

    async def _cut_streams(self, rng: random.Random) -> None:
        self._site(rng).balancer.cut_streams()

    async def _disturb(self, rng: random.Random) -> None:
        balancer = self._site(rng).balancer
        share = rng.choice((0.05, 0.3, 1.0))
        decisions: list[Decision] = rng.sample(["busy", "drop", "lose", "break"], rng.randrange(1, 5))

        def decide(_: Request) -> Decision:
            return rng.choice(decisions) if rng.random() < share else "pass"

        balancer.decide = decide
        await anyio.sleep(rng.uniform(0.1, 1.5))
        if balancer.decide is decide:
            balancer.decide = lambda _: "pass"

    async def _refuse_connections(self, rng: random.Random) -> None:
        site = self._site(rng)
        async with site.lock:
            site.balancer.down()
            await anyio.sleep(rng.uniform(0.1, 2.0))
            await site.balancer.up()

    # --- servers --------------------------------------------------------------------------------------------------

    async def _restart(self, rng: random.Random, *, kill: bool) -> None:
        """Restart a server; sometimes the load balancer accepts connections meanwhile, and cuts them."""
        site = self._site(rng)
        async with site.lock:
            if rng.random() < 0.5:
                site.balancer.down()
            await anyio.to_thread.run_sync(lambda: site.server.stop(kill=kill))
            await anyio.sleep(rng.uniform(0.0, 1.5))
            await anyio.to_thread.run_sync(site.server.start)
            await site.balancer.up()

    def _site(self, rng: random.Random) -> Site:
        return rng.choice(self._sites)

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def _rotate(self, rng: random.Random) -> None:
        if not self._tokens.has_ended:
            self._tokens.rotate(overlap=rng.random() < 0.5)

    async def _refuse(self, rng: random.Random) -> None:
        self._tokens.delay = rng.uniform(0.0, 0.5)
        self._tokens.refuse()

    async def _refuse_for_long(self, rng: random.Random) -> None:
        """Longer than the agents wait for a token."""
        self._tokens.delay = rng.uniform(3.0, 6.0)
        self._tokens.refuse()

    async def _end_login(self, rng: random.Random) -> None:
        if self._tokens.has_ended:
            return
        self._tokens.end()
        await anyio.sleep(rng.uniform(0.5, 2.0))
        self._tokens.rotate()  # a person has logged in again
