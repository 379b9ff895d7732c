"""An MCP server of one of three libraries in a separate process, which a test can kill and start again."""

import json
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support import fastmcp_login
from tests.support.served import Served

__all__ = ["KINDS", "Counterpart", "missing"]

_SERVERS: Final = Path(__file__).parent.parent / "servers"
_ROOT: Final = _SERVERS.parent.parent
_COMMANDS: Final = {
    "python": (sys.executable, "-m", "tests.servers.counterpart_python"),
    "fastmcp": (str(_ROOT / ".venv/fastmcp/bin/python"), "-m", "tests.servers.counterpart_fastmcp"),
    "typescript": ("node", str(_SERVERS / "counterpart.mjs")),
}
KINDS: Final = tuple(_COMMANDS)


def missing(kind: str) -> str | None:
    """Return what must be installed to run a server of a kind; ``None`` if nothing is missing."""
    if kind == "fastmcp":
        return fastmcp_login.missing()
    if kind == "typescript" and shutil.which("node") is None:
        return "Node.js is not installed"
    if kind == "typescript" and not (_SERVERS / "node_modules/@modelcontextprotocol/sdk").is_dir():
        return "the TypeScript SDK is not installed: (cd tests/servers && npm ci)"
    return None


class Counterpart:
    """Runs ``tests/servers/counterpart*``, whose ``directory`` outlives the process. ``options``: of the library."""

    def __init__(self, kind: str, directory: Path, **options: Any) -> None:
        self._command = _COMMANDS[kind]
        self._directory = directory
        self._options = json.dumps(options)
        self._server: Served | None = None
        self.port = 0
        self.version = 0
        """The number that the tool ``version`` returns."""
        self._counting = threading.Lock()
        directory.mkdir()
        self.accept()
        self._put("version", "0")
        (directory / "executed").touch()

    def accept(self, *tokens: str, scopes: tuple[str, ...] = ("use",)) -> None:
        """Accept these access tokens from now on, and no others."""
        self._put("tokens.json", json.dumps(dict.fromkeys(tokens, scopes)))

    def executed(self) -> Counter[str]:
        """Return how often each call was executed, by all processes."""
        return Counter((self._directory / "executed").read_text().split("\n")[:-1])

    def notify(self) -> None:
        """Count the version up, and tell the clients that something has changed."""
        with self._counting:  # a thread of a test that was cancelled may still run
            self.version += 1
            self._put("version", str(self.version))
        httpx.post(
            f"http://127.0.0.1:{self.port}/test/notify", trust_env=False, verify=False, timeout=60
        ).raise_for_status()

    def start(self) -> None:
        """Start the server; after the first time, on the same port."""
        arguments = (str(self.port), str(self._directory), self._options)
        self._server = Served(*self._command, *arguments, FASTMCP_LOG_LEVEL="CRITICAL")
        self.port = httpx.URL(self._server.said["url"]).port or 0

    def stop(self, *, kill: bool = True) -> None:
        """Kill the server, or let it end its connections."""
        if self._server is not None:
            if kill:
                self._server.kill()
            self._server.__exit__(None, None, None)
            self._server = None

    def _put(self, name: str, content: str) -> None:
        temporary = self._directory / f".{name}"
        temporary.write_text(content)
        temporary.rename(self._directory / name)
