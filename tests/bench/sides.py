"""The two ways to have a token: a refresher's, and the SDK's own."""

import json
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.support.command import Command, wait_until
from tests.support.daemon import published, running
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC

__all__ = ["Ours", "Side", "Theirs"]


class Side(ABC):
    """A login, and what can befall it; ``life``: seconds for which its first access token is good."""

    way: Literal["ours", "sdk"]
    tokens: Path
    demands: Path
    """As in ``Orders``, where agents look."""

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int) -> None:
        self.oidc = oidc
        self.fields = oidc.mint("public", mcp.url, live=True)
        self.fields |= {"server_url": mcp.url, "expires_in": life}
        self.life = life
        self.ends_at = 0.0

    def store(self) -> None:
        """Store the login; from now on its access token lives."""
        self.ends_at = time.time() + self.life

    @abstractmethod
    def attend(self) -> None:
        """Have somebody look after it, if anybody does."""

    @abstractmethod
    def begin(self) -> None:
        """Be told that the agents begin."""

    def end(self) -> None:
        """End the first access token at the server."""
        self.oidc.end(self.fields["access_token"])

    @abstractmethod
    def rotate(self) -> None:
        """Refresh it elsewhere."""

    @abstractmethod
    def come_due(self) -> None:
        """Have it refreshed because it is time."""

    @abstractmethod
    def see_it_refreshed(self) -> None:
        """Wait until it is, or should have been."""


class Ours(Side):
    """A refresher, and our client."""

    way = "ours"

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int, refresher: Command, ends: ExitStack) -> None:
        super().__init__(oidc, mcp, life)
        refresher.home.mkdir(mode=0o700)
        self.tokens, self.demands = refresher.tokens, refresher.state / "demands"
        self._refresher = refresher
        self._ends = ends

    def store(self) -> None:
        """Import it."""
        super().store()
        self._refresher.bring("linear", self.fields)

    def attend(self) -> None:
        """Start a daemon."""
        self._ends.enter_context(running(self._refresher))

    def begin(self) -> None:
        """Nothing changes: the token is published."""

    def rotate(self) -> None:
        """Do it by hand."""
        assert self._refresher("run-once", "linear", "--force").code == 0

    def come_due(self) -> None:
        """Do it well before its end, as cron would."""
        process = self._refresher.start("run-once", "--horizon", str(self.life))
        self._ends.callback(_kill, process)

    def see_it_refreshed(self) -> None:
        """Wait until it is."""
        wait_until(lambda: published(self._refresher) > 0, "it is refreshed")


class Theirs(Side):
    """A stored login, and the SDK's provider in each agent."""

    way = "sdk"

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int, home: Path) -> None:
        super().__init__(oidc, mcp, life)
        # In a place where the tests know tokens to be.
        self.tokens = self.demands = home / "tokens/login.json"
        self.tokens.parent.mkdir(parents=True)
        self._resource = mcp.url

    def store(self) -> None:
        """Store it where all agents look."""
        super().store()
        self._write({key: self.fields[key] for key in ("access_token", "refresh_token", "expires_in")})

    def attend(self) -> None:
        """Nobody does: each agent is on its own."""

    def begin(self) -> None:
        """Take it that they have just logged in; see ``Orders``."""
        self.ends_at = time.time() + self.life

    def rotate(self) -> None:
        """Do as another process would that has the same login, and store it for all."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.fields["refresh_token"],
            "client_id": self.fields["client_id"],
            "resource": self._resource,
        }
        answer = httpx.post(self.fields["token_endpoint"], data=form, trust_env=False)
        self._write(answer.raise_for_status().json())

    def come_due(self) -> None:
        """Wait for its end: the provider refreshes with the next call."""
        wait_until(lambda: time.time() > self.ends_at, "it has expired")
        self.end()

    def see_it_refreshed(self) -> None:
        """Wait for so long that it should be."""
        ends = time.time() + 1.5
        wait_until(lambda: time.time() > ends, "it should be refreshed")

    def _write(self, tokens: dict[str, Any]) -> None:
        self.tokens.write_text(json.dumps(tokens | {"token_type": "Bearer"}))


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
