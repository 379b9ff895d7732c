"""The whole product: an MCP agent whose one session survives many rotations."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.command import Command, wait_until
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.vault import Vault

ROTATIONS = 20
LONGEST = 400.0

# An agent: the README's two lines, one session, and a call every 50 ms until stdin ends.
AGENT = """
import json, sys, threading
import anyio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from shim.httpx2 import async_client

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()

async def main(url, mode):
    calls, failures = 0, []
    async with (
        async_client("linear") as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        while not ended.is_set():
            calls += 1
            try:
                answer = await client.call_tool("add", {"a": calls, "b": 1})
                if answer.is_error or answer.content[0].text != str(calls + 1):
                    failures.append(repr(answer))
            except Exception as error:
                failures.append(repr(error))
            await anyio.sleep(0.2)
    print(json.dumps({"calls": calls, "failures": failures[:5]}))

anyio.run(main, *sys.argv[1:])
"""


class Outcome(NamedTuple):
    """What an agent, its servers and its daemons did."""

    agent: dict[str, Any]
    server: dict[str, Any]
    oidc: dict[str, Any]
    generation: int
    codes: list[int]
    """Exit codes of the daemons."""
    stderr: str
    run_once_codes: list[int]


def observe(home: Path, vault: Vault, *, daemons: int, run_once: bool, mode: str) -> Outcome:
    """Run an agent, its servers and its daemons for twenty rotations."""
    home.mkdir(mode=0o700)
    refresher = Command(home, vault)
    with OIDC(vault, accessTokenTtl=4) as oidc, MCPServerProcess(oidc) as server:
        refresher.import_grant("linear", oidc.mint("basic", server.url) | {"server_url": server.url})
        running = [refresher.start("run") for _ in range(daemons)]
        published = refresher.state / "tokens/linear.json"
        wait_until(published.exists, "the first token is there")
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT, server.url, mode],
            env=refresher.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run_once_codes = []
        ends = time.monotonic() + LONGEST
        while refresher.token("linear").generation <= ROTATIONS:
            assert time.monotonic() < ends, "twenty rotations took too long"
            assert agent.poll() is None, agent.communicate()
            if run_once:
                run_once_codes.append(refresher("run-once").code)
            # The pause between two runs of cron.
            time.sleep(1)
        stdout, stderr = agent.communicate(timeout=90)
        assert agent.returncode == 0, stderr
        for process in running:
            process.terminate()
        done = [refresher.finish(process) for process in running]
        return Outcome(
            agent=json.loads(stdout),
            server=server.log(),
            oidc=oidc.log(),
            generation=refresher.token("linear").generation,
            codes=[each.code for each in done],
            stderr="".join(each.stderr for each in done),
            run_once_codes=run_once_codes,
        )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """The outcomes with one daemon, and with two daemons and cron. They run at the same time: each takes a minute."""
    need(oidc_module.missing())
    below = tmp_path_factory.mktemp("agents")
    vault = Vault()
    done: dict[str, Outcome] = {}

    def one() -> None:
        done["one daemon"] = observe(below / "one", vault, daemons=1, run_once=False, mode="legacy")

    def several() -> None:
        done["two daemons and cron"] = observe(below / "several", vault, daemons=2, run_once=True, mode="auto")

    threads = [threading.Thread(target=run) for run in (one, several)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield done
    assert not vault.leaks_below(below)


@pytest.mark.parametrize("run", ["one daemon", "two daemons and cron"])
def test_one_session_survives_twenty_rotations_without_a_failed_call(outcomes: dict[str, Outcome], run: str) -> None:
    """If it failed, agents would fail or reconnect at a rotation."""
    seen = outcomes[run]
    assert seen.generation > ROTATIONS
    assert seen.agent["failures"] == []
    assert seen.agent["calls"] > ROTATIONS, "the agent made too few calls to meet each token"
    # The newer protocol has no sessions.
    assert seen.server["sessions"] == (1 if run == "one daemon" else 0)
    assert (seen.oidc["reused"], seen.oidc["presented_twice"]) == (0, 0)
    assert len(seen.oidc["requests"]) == seen.generation, "a rotation was made twice"
    assert seen.codes == [0] * len(seen.codes), seen.stderr
    assert set(seen.run_once_codes) <= {0}
