"""The demo without a terminal: its servers, daemon and agent, its failures, and its end."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from refresher.demo.timeline import MAX_WIDTH
from tests.support.command import Command, wait_until
from tests.support.demo import Demo

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in Linux's /proc")


@pytest.fixture
def demo(refresher: Command, temporary: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; at the end of the test none of their processes may run."""
    started: list[Demo] = []

    def start(seconds: int, **environment: str) -> Demo:
        more = {"TMPDIR": str(temporary), **environment}
        one = Demo(refresher, temporary, refresher.start("demo", "--seconds", str(seconds), environment=more))
        started.append(one)
        wait_until(lambda: one.has_begun() or one.process.poll() is not None, "all its processes run")
        return one

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.communicate()
        try:
            wait_until(one.has_ended, "the demo's processes have ended")
        finally:
            one.kill()


def test_the_demo_shows_each_kind_of_rotation_and_leaves_nothing_behind(
    demo: Callable[..., Demo], refresher: Command, temporary: Path
) -> None:
    """If it failed, the first command a user tries would not work, or would touch the files of the user."""
    for name in ("mcp", "httpx2", "uvicorn"):
        (refresher.home / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    before = sorted(refresher.home.iterdir())
    one = demo(
        15,
        REFRESHER_STATE_DIR=str(refresher.home / "state"),
        REFRESHER_TOKENS_GROUP="no such group",
        HTTP_PROXY="http://127.0.0.1:9",
        ALL_PROXY="http://127.0.0.1:9",
    )
    done = one.finish()
    assert done.code == 0, done.stdout + done.stderr
    assert re.search(r"^[\d,]+ calls in 1 MCP session, and not one call failed\.$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +[1-9]  on schedule", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1  after it was revoked", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1  by 'refresher run-once --force' from another process$", done.stdout, re.MULTILINE)
    assert "Refresh tokens sent twice: 0. MCP sessions lost: 0." in done.stdout
    assert "the MCP server refuses it (401)" in done.stdout
    assert "\x1b" not in done.stdout, "colours were written to a pipe"
    assert max(map(len, done.stdout.splitlines())) <= MAX_WIDTH
    assert done.stderr == ""
    assert len(one.secrets) >= 8, "too few secrets were seen for the search to mean anything"
    assert one.has_ended()
    assert list(temporary.iterdir()) == []
    assert sorted(refresher.home.iterdir()) == before


def test_a_signal_ends_the_demo_before_its_first_call(refresher: Command, temporary: Path) -> None:
    """If it failed, a demo that hangs at its start could not be stopped."""
    one = Demo(refresher, temporary, refresher.start("demo", environment={"TMPDIR": str(temporary)}))
    wait_until(lambda: one.has_begun() or one.pids != {}, "its first process runs")
    one.process.send_signal(signal.SIGTERM)
    done = one.finish()
    assert done.code == 143, done.stdout + done.stderr
    assert "Stopped after 0 s" in done.stdout
    assert one.has_ended()
    assert list(temporary.iterdir()) == []


def test_the_processes_of_a_killed_demo_end(demo: Callable[..., Demo]) -> None:
    """If it failed, a killed demo would leave a daemon that runs forever."""
    one = demo(30)
    one.wait_for("starts to call")
    one.process.kill()
    one.process.wait()
    wait_until(one.has_ended, "its processes have ended")
    one.process.communicate()


def test_the_demo_reports_a_stolen_refresh_token(demo: Callable[..., Demo]) -> None:
    """If it failed, the demo would report success for a product that does not work."""
    one = demo(10)
    one.wait_for("starts to call")
    grant = one.grant()
    fields = {key: grant[key] for key in ("client_id", "client_secret", "refresh_token", "resource")}
    one.learn()
    httpx.post(grant["token_endpoint"], data={"grant_type": "refresh_token", **fields}, trust_env=False, timeout=60)
    done = one.finish()
    assert done.code == 1, done.stdout
    text = " ".join(done.stdout.split())
    assert re.search(r"The demo failed \([\d,]+ calls in 1 MCP session\):", done.stdout)
    assert re.search(r"- [\d,]+ of [\d,]+ calls failed; the last: .*needs a new login by a person", text)
    assert re.search(r"- refresh tokens sent twice: [1-9]", done.stdout)
    assert "not one call failed" not in done.stdout
    assert "a call failed: " in done.stdout


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("refresher.demo.server", "the server ended unexpectedly (killed by signal 9)"),
        ("refresher.demo.agent", "the agent ended unexpectedly (killed by signal 9)"),
        ("refresher", "refresher run ended unexpectedly (killed by signal 9)"),
    ],
)
def test_a_process_that_ends_unexpectedly_ends_the_demo(
    demo: Callable[..., Demo], temporary: Path, module: str, problem: str
) -> None:
    """If it failed, the demo would run on without one of its processes, or report success."""
    one = demo(3600)
    one.wait_for("starts to call")
    os.kill(one.pids[module], signal.SIGKILL)
    done = one.finish()
    assert done.code == 1, done.stdout
    assert "The demo failed" in done.stdout
    assert f"  - {problem}" in done.stdout
    assert list(temporary.iterdir()) == []
