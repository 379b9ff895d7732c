"""The two setups that the benchmark compares: agents with refresher, and agents with the provider of the SDK."""

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

__all__ = ["RefresherSetup", "SDKSetup", "Setup"]


class Setup(ABC):
    """A login and the events that change it; ``life``: seconds for which its first access token is valid."""

    way: Literal["refresher", "sdk"]
    tokens: Path
    demands: Path
    """As in ``Plan``: the directories that the agents read."""

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int) -> None:
        self.oidc = oidc
        self.url = mcp.url
        self.fields = oidc.mint("public", mcp.url, live=True)
        self.fields |= {"server_url": mcp.url, "expires_in": life}
        self.life = life
        self.ends_at = 0.0

    def store(self) -> None:
        """Store the login; the lifetime of its access token begins."""
        self.ends_at = time.time() + self.life

    @abstractmethod
    def start_refreshing(self) -> None:
        """Start the process that refreshes the login, if there is one."""

    @abstractmethod
    def agents_begin(self) -> None:
        """Note that the agents begin."""

    def revoke(self) -> None:
        """End the first access token at the server."""
        self.oidc.end(self.fields["access_token"])

    @abstractmethod
    def refresh_elsewhere(self) -> None:
        """Refresh the login in another process than the agents."""

    @abstractmethod
    def refresh_on_schedule(self) -> None:
        """Start the refresh at the scheduled time."""

    @abstractmethod
    def wait_for_the_refresh(self) -> None:
        """Wait until the login is refreshed, or for the time that a refresh takes."""


class RefresherSetup(Setup):
    """refresher with its daemon, and the client of ``shim``."""

    way = "refresher"

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int, refresher: Command, ends: ExitStack) -> None:
        super().__init__(oidc, mcp, life)
        refresher.home.mkdir(mode=0o700)
        self.tokens, self.demands = refresher.tokens, refresher.state / "demands"
        self._refresher = refresher
        self._ends = ends

    def store(self) -> None:
        """Import the login."""
        super().store()
        self._refresher.bring("linear", self.fields)

    def start_refreshing(self) -> None:
        """Start the daemon."""
        self._ends.enter_context(running(self._refresher))

    def agents_begin(self) -> None:
        """Do nothing: the token is published."""

    def refresh_elsewhere(self) -> None:
        """Run ``run-once --force``."""
        assert self._refresher("run-once", "linear", "--force").code == 0

    def refresh_on_schedule(self) -> None:
        """Run ``run-once`` well before the expiry, as cron does."""
        process = self._refresher.start("run-once", "--horizon", str(self.life))
        self._ends.callback(_kill, process)

    def wait_for_the_refresh(self) -> None:
        """Wait until the new token is published."""
        wait_until(lambda: published(self._refresher) > 0, "it is refreshed")


class SDKSetup(Setup):
    """A stored login, and the provider of the SDK in each agent."""

    way = "sdk"

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, life: int, home: Path) -> None:
        super().__init__(oidc, mcp, life)
        # The vault of the tests allows tokens in a directory of this name.
        self.tokens = self.demands = home / "tokens/login.json"
        self.tokens.parent.mkdir(parents=True)
        self._resource = mcp.url

    def store(self) -> None:
        """Store the login in the file that all agents read."""
        super().store()
        self._write({key: self.fields[key] for key in ("access_token", "refresh_token", "expires_in")})

    def start_refreshing(self) -> None:
        """Do nothing: each agent refreshes for itself."""

    def agents_begin(self) -> None:
        """Count the lifetime from now: the agents assume that they have just logged in (see ``Plan``)."""
        self.ends_at = time.time() + self.life

    def refresh_elsewhere(self) -> None:
        """Refresh the login as another process with the same login does, and store the result for all."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.fields["refresh_token"],
            "client_id": self.fields["client_id"],
            "resource": self._resource,
        }
        answer = httpx.post(self.fields["token_endpoint"], data=form, trust_env=False, timeout=90)
        self._write(answer.raise_for_status().json())

    def refresh_on_schedule(self) -> None:
        """Wait for the expiry: the provider refreshes with the next call."""
        wait_until(lambda: time.time() > self.ends_at, "it has expired")
        self.revoke()

    def wait_for_the_refresh(self) -> None:
        """Wait for the time that a refresh takes."""
        ends = time.time() + 1.5
        wait_until(lambda: time.time() > ends, "it should be refreshed")

    def _write(self, tokens: dict[str, Any]) -> None:
        self.tokens.write_text(json.dumps(tokens | {"token_type": "Bearer"}))


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
