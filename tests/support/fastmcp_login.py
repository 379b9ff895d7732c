"""A FastMCP server with its own authorization server, for logins, in a separate process and environment."""

import json
from pathlib import Path

from tests.support.oidc import OIDC
from tests.support.served import Served

__all__ = ["FastMCPLogin", "missing"]

_PYTHON = Path(__file__).parent.parent.parent / ".venv/fastmcp/bin/python"


def missing() -> str | None:
    """Return what must be installed to run it; ``None`` if nothing is missing."""
    return None if _PYTHON.exists() else "FastMCP is not installed: tests/run installs it"


class FastMCPLogin(Served):
    """FastMCP's provider in memory, or its OAuth proxy in front of ``upstream``; ``stateless``: without sessions."""

    def __init__(self, upstream: OIDC | None = None, *, stateless: bool = False) -> None:
        options = {"upstream": None if upstream is None else upstream.endpoints, "stateless": stateless}
        super().__init__(
            *(str(_PYTHON), "-m", "tests.servers.fastmcp_login", json.dumps(options)),
            FASTMCP_SECRET="" if upstream is None else upstream.secrets["inspector"],
            FASTMCP_LOG_LEVEL="CRITICAL",
        )
        self.url: str = self.said["url"]
