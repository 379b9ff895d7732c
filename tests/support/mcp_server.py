"""A real MCP server in a process of its own."""

import json
import sys
from typing import Any

import httpx

from tests.support.oidc import OIDC
from tests.support.served import Served

__all__ = ["MCPServerProcess"]


class MCPServerProcess(Served):
    """The MCP SDK's server side, which takes the tokens that ``oidc`` calls active and made out for it.

    ``scopes``: what a token must have; its metadata tells them.
    """

    def __init__(self, oidc: OIDC, *scopes: str) -> None:
        super().__init__(
            *(sys.executable, "-m", "tests.servers.mcp_server"),
            *(oidc.endpoints["issuer"], oidc.endpoints["introspection_endpoint"], *scopes),
            MCP_INSPECTOR=json.dumps(["inspector", oidc.secrets["inspector"]]),
        )
        self.url: str = self.said["url"]

    def log(self) -> dict[str, Any]:
        """Return how it has answered, and how many sessions it has seen."""
        answer: dict[str, Any] = httpx.get(self.url.replace("/mcp", "/test/log"), trust_env=False).json()
        return answer
