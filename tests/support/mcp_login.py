"""An MCP server with its own authorization server, for logins, in a separate process."""

import json
import sys
from collections import Counter
from typing import Any

import httpx

from tests.support.served import Served

__all__ = ["MCPLogin"]


class MCPLogin(Served):
    """The server side of the MCP SDK; ``tests/servers/mcp_login.py`` describes ``options``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(sys.executable, "-m", "tests.servers.mcp_login", json.dumps(options))
        self.url: str = self.said["url"]
        self.issuer = self.url.removesuffix("/mcp")

    def seen(self) -> Counter[str]:
        """Return the counts of: registered, authorized, exchanged, refreshed, revoked, reused."""
        return Counter(httpx.get(f"{self.issuer}/test/log", trust_env=False, verify=False, timeout=60).json())

    def forget(self) -> None:
        """Forget the registered clients."""
        httpx.post(f"{self.issuer}/test/forget", trust_env=False, verify=False, timeout=60).raise_for_status()
