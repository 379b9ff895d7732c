"""The servers of a chaos, each behind a load balancer, and the tokens of their agents."""

from pathlib import Path
from typing import Final

import anyio

from shim import Problem
from tests.support.balancer import Balancer
from tests.support.counterpart import Counterpart
from tests.support.published import Published

__all__ = ["Site", "Tokens"]

_ENDED: Final = Problem("invalid_grant", "the login has ended", 1.0, None)


class Site:
    """A server of the Python SDK, for both protocols, and its load balancer."""

    def __init__(self, directory: Path, *, json: bool) -> None:
        self.json = json
        self.server = Counterpart("python", directory, json_response=json)
        self.lock = anyio.Lock()
        """Held while the server or its load balancer is down."""

    def balancer_of(self) -> Balancer:
        """Make the load balancer, when the server runs."""
        self.balancer = Balancer(self.server.port)
        return self.balancer


class Tokens:
    """Acts as refresher: one grant for all agents, and its tokens."""

    def __init__(self, root: Path, sites: list[Site]) -> None:
        self._sites = sites
        self._published = Published(root, *(site.balancer.origin for site in sites))
        self._generation = 0
        self.delay = 0.0
        """Seconds before a demand is met."""
        self.has_ended = False
        self.rotate()
        self.source = self._published.source()

    def rotate(self, *, overlap: bool = False) -> None:
        """Publish a new token. With ``overlap``, the servers still accept the one before."""
        self.has_ended = False
        self._generation += 1
        self._accept(self._generation, *((self._generation - 1,) if overlap else ()))
        self._published.put(self._generation)

    def refuse(self) -> None:
        """Let the servers refuse the current token."""
        self._accept()

    def end(self) -> None:
        """End the login: the servers refuse the token, and only a person can help."""
        self.has_ended = True
        self._accept()
        self._published.put(self._generation, state="reauthorization_required", error=_ENDED)

    async def serve_demands(self) -> None:
        """Rotate when the agents demand it."""
        while True:
            await anyio.sleep(0.05)
            if f"linear.{self._generation}" in self._published.demanded() and not self.has_ended:
                generation = self._generation
                await anyio.sleep(self.delay)
                if self._generation == generation and not self.has_ended:
                    self.rotate()

    def _accept(self, *generations: int) -> None:
        for site in self._sites:
            site.server.accept(*(f"access-token-{generation}" for generation in generations))
