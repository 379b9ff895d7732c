"""The daemon in a container of 384 MiB, beside a malicious agent and a server that issues very large tokens."""

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import published, running, stopped
from tests.support.memory_limit import memory_limited, no_memory_limit
from tests.support.parts import mounted, no_mounts
from tests.support.peak import MIB
from tests.support.token_server import TokenServer

LIMIT = 384 * MIB
"""The limit of the sidecar in ``deploy/kubernetes``."""
FOREIGN = 300_000
NAMES = [f"grant-{number}" for number in range(8)]


class _LargeTokens(TokenServer):
    """Issues refresh tokens of 700 KB, and refuses the first one of each client once, in an answer of 0.9 MB."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.together = threading.Barrier(len(NAMES))
        super().__init__(lambda _: 3600, self._hold)

    def _answer(self, client: str, token: str) -> dict[str, Any]:
        if len(self.presented[client]) == 2:
            self.refused.add(client)
            return {"error": "invalid_request", "error_description": "not today, not now, " * 45_000}
        return {**super()._answer(client, token), "refresh_token": secrets.token_urlsafe(525_000)}

    def _hold(self) -> None:
        """Answer the first two requests of all clients at the same time."""
        if all(len(self.presented[name]) <= 2 for name in NAMES):
            self.together.wait(60)


def test_the_daemon_rotates_in_384_mib_whatever_agents_and_servers_do(refresher: Command) -> None:
    """If it failed, an agent or a server could have the sidecar killed in the middle of an exchange, again and again."""
    need(no_mounts())
    demands = refresher.state / "demands"
    unlimited = no_memory_limit()
    with ExitStack() as stack:
        stack.enter_context(mounted(demands, "size=1g,nr_inodes=0"))
        server = stack.enter_context(_LargeTokens())
        for name in NAMES:
            refresher.bring(name, server.grant(name, refresh_token=secrets.token_urlsafe(525_000)))
        prefix = ("env",) if unlimited else stack.enter_context(memory_limited(LIMIT))
        daemon = stack.enter_context(running(refresher, prefix=prefix))
        wait_until(lambda: all(published(refresher, name) == 1 for name in NAMES), "every grant has a token")
        daemon.send_signal(signal.SIGSTOP)
        # A tmpfs lists the first ones last.
        for name in NAMES:
            (demands / f"{name}.1").touch()
        _flood(demands)
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: _killed(daemon) or server.refused == set(NAMES), "the server has refused every rotation")
        wait_until(
            lambda: _killed(daemon) or all(published(refresher, name) == 2 for name in NAMES), "all have rotated"
        )
        assert not _killed(daemon), "the kernel has killed the daemon, which needed more memory"
        most = _most_memory(daemon)
        log = stopped(refresher, daemon)
    assert most < LIMIT
    assert {len(server.asked[name]) for name in NAMES} == {3}, log
    assert server.reused == 0, log
    if unlimited:
        pytest.skip(f"{unlimited}; the peak of the daemon was measured instead: {most // MIB} MiB")


def _killed(daemon: subprocess.Popen[str]) -> bool:
    return daemon.poll() is not None


def _flood(demands: Path) -> None:
    program = f"import os\nfor number in range({FOREIGN}): os.close(os.open(f'unknown-{{number}}.0', os.O_CREAT | os.O_WRONLY))"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=demands, check=True)
    with os.scandir(demands) as entries:
        assert sum(1 for _ in entries) == FOREIGN + len(NAMES)


def _most_memory(process: subprocess.Popen[str]) -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return 1024 * int(line)
