"""An MCP server with an authorization server of its own, in a process of its own, where people log in."""

import json
import sys
from collections import Counter
from typing import Any

import httpx

from tests.support.served import Served

__all__ = ["MCPLogin"]


class MCPLogin(Served):
    """The MCP SDK's server side; ``options``: see ``tests/servers/mcp_login.py``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(sys.executable, "-m", "tests.servers.mcp_login", json.dumps(options))
        self.url: str = self.said["url"]
        self.issuer = self.url.removesuffix("/mcp")

    def seen(self) -> Counter[str]:
        """Return how often: registered, authorized, exchanged, refreshed, revoked, reused."""
        return Counter(httpx.get(f"{self.issuer}/test/log", trust_env=False).json())

    def forget(self) -> None:
        """Lose the registered clients."""
        httpx.post(f"{self.issuer}/test/forget", trust_env=False).raise_for_status()
