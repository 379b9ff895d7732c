"""A stage for programs of others: an authorization server, an MCP server, a daemon, and the programs from npm."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from refresher.cli.clients.client import Values
from refresher.cli.clients.programs import PROGRAMS
from tests.support import oidc as oidc_module
from tests.support.command import Command, Done, wait_until
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.scripted_model import Call

__all__ = ["BIN", "Stage", "missing", "staged"]

_AGENTS: Final = Path(__file__).parent.parent / "agents"
BIN: Final = _AGENTS / "node_modules/.bin"
_LONGEST: Final = 180.0
_NO_PROXY: Final = "http://127.0.0.1:9"
"""No proxy: what a program sends to another machine fails at once."""


def missing(package: str) -> str | None:
    """Return what must be installed to run a program; ``None`` if nothing is missing."""
    if not (_AGENTS / "node_modules" / package).is_dir():
        return f"{package} is not installed: (cd tests/agents && npm install)"
    return oidc_module.missing()


class Stage:
    """A grant ``linear``. Its tokens live for an hour, unless a test ends one."""

    def __init__(self, refresher: Command, oidc: OIDC, server: MCPServerProcess) -> None:
        self.refresher = refresher
        self.oidc = oidc
        self.server = server
        self.home = refresher.home
        self.work = refresher.home / "work"
        self.work.mkdir()
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NO_PROXY)
        self.environment: dict[str, str] = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **nowhere,
        }

    def snippet(self, key: str) -> str:
        """Return what ``refresher connect`` prints for a program."""
        (client,) = (client for client in PROGRAMS if client.key == key)
        command = Path(sys.executable).parent / "refresher"
        return client.text(Values("linear", self.server.url, str(command), str(self.refresher.state)))

    def token(self) -> str:
        """Return the current token."""
        token = self.refresher.token("linear").access_token
        assert token is not None
        return token

    def rotate(self) -> None:
        """Rotate, and end the token that was current: what a program meets when a token expires."""
        old = self.token()
        done = self.refresher("run-once", "--force", "linear")
        assert done.code == 0, done.stderr
        self.oidc.end(old)

    def revoke(self) -> None:
        """End the current token, and nobody knows."""
        self.oidc.end(self.token())

    def turns(self) -> Iterator[list[Call]]:
        """Yield calls around three rotations and one revocation, after which three calls are made at once."""
        yield [Call(1000, 1)]
        for number in range(3):
            self.rotate()
            yield [Call(2000, number)]
        self.revoke()
        yield [Call(3000, number) for number in range(3)]
        self.rotate()
        yield [Call(4000, 1), Call(4000, 2)]

    def turns_around_a_login(self) -> Iterator[list[Call]]:
        """Yield a call before a new login is needed, one while it is needed, and one after the login."""
        yield [Call(1000, 1)]
        self.oidc.revoke(self.oidc.last_grant_id)
        self.revoke()
        yield [Call(2000, 1)]
        before = self.refresher.token("linear").generation
        self.refresher.import_grant("linear", self._grant(), "--replace")
        wait_until(lambda: self.refresher.token("linear").generation > before, "the token of the new login is there")
        yield [Call(3000, 1)]

    def _grant(self) -> dict[str, Any]:
        return self.oidc.mint("basic", self.server.url) | {"server_url": self.server.url}

    def run(self, *command: str, environment: Mapping[str, str]) -> Done:
        """Run a program to its end, in an empty home."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.work,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def staged(refresher: Command, **config: Any) -> Iterator[Stage]:
    """Start the servers and the daemon."""
    with OIDC(refresher.vault, **{"accessTokenTtl": 3600} | config) as oidc, MCPServerProcess(oidc) as server:
        refresher.import_grant("linear", oidc.mint("basic", server.url) | {"server_url": server.url})
        daemon = refresher.start("run")
        try:
            wait_until((refresher.tokens / "linear.json").exists, "the first token is there")
            yield Stage(refresher, oidc, server)
        finally:
            daemon.terminate()
            stopped = refresher.finish(daemon)
        assert stopped.code == 0, stopped.stderr
