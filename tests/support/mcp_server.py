"""An MCP server in a separate process."""

import json
import sys
from typing import Any

import httpx

from tests.support.oidc import OIDC
from tests.support.served import Served

__all__ = ["MCPServerProcess"]


class MCPServerProcess(Served):
    """The server side of the MCP SDK. It accepts the tokens that ``oidc`` has issued for it.

    ``scopes``: the scopes that a token needs, and that the metadata names.
    """

    def __init__(self, oidc: OIDC, *scopes: str) -> None:
        super().__init__(
            *(sys.executable, "-m", "tests.servers.mcp_server"),
            *(oidc.endpoints["issuer"], oidc.endpoints["introspection_endpoint"], *scopes),
            MCP_INSPECTOR=json.dumps(["inspector", oidc.secrets["inspector"]]),
        )
        self.url: str = self.said["url"]

    def log(self) -> dict[str, Any]:
        """Return the number of responses by status, and the number of sessions."""
        answer: dict[str, Any] = httpx.get(
            self.url.replace("/mcp", "/test/log"), trust_env=False, verify=False, timeout=60
        ).json()
        return answer
