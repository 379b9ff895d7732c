"""A real MCP server in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.oidc import OIDC

__all__ = ["MCPServerProcess"]

_ROOT = Path(__file__).parent.parent.parent


class MCPServerProcess:
    """The MCP SDK's server side, which takes the tokens that ``oidc`` calls active and made out for it."""

    def __init__(self, oidc: OIDC) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.servers.mcp_server",
                oidc.endpoints["issuer"],
                oidc.endpoints["introspection_endpoint"],
            ],
            env={**os.environ, "MCP_INSPECTOR": json.dumps(["inspector", oidc.secrets["inspector"]])},
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the MCP server did not start"
        self.url: str = json.loads(line)["url"]

    def log(self) -> dict[str, Any]:
        """Return how it has answered, and how many sessions it has seen."""
        answer: dict[str, Any] = httpx.get(self.url.replace("/mcp", "/test/log"), trust_env=False).json()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends by itself
        self._process.stdout.close()
        self._process.wait(10)
