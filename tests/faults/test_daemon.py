"""The daemon with signals, kills, and a server that sends Retry-After."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support import parts
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, in_mid_exchange, published, running, under_way
from tests.support.oidc import OIDC
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_an_exchange_saves_and_publishes_the_answer(
    refresher: Command, own_oidc: Start, number: signal.Signals
) -> None:
    """If it failed, each restart of the machine could destroy a login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(number)
        assert "waiting for linear to finish" in heard(process, "stopping")[-1]
        server.release()
        done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert published(refresher) == 2
    assert server.introspect(refresher.token("linear").access_token)["active"]
    assert refresher.leftovers() == []
    assert refresher("run-once", "--force").code == 0
    assert server.log()["reused"] == 0


def test_more_signals_warn_of_the_loss_and_lose_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a second Ctrl-C would destroy the login that the first one protects."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        heard(process, "stopping")
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            heard(process, "linear: still rotating")
        server.release()
        done = refresher.finish(process)
    assert done.code == 0
    assert published(refresher) == 2
    assert server.log()["reused"] == 0


def test_no_exchange_starts_after_a_stop(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a pod would be killed during an exchange that need not have started."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher.import_grant("notion", server.mint("public"))
    with running(refresher) as process:
        wait_until(
            lambda: refresher.grant("notion").generation + published(refresher) == 2, "the first tokens are there"
        )
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        heard(process, "stopping")
        (refresher.state / "demands/notion.1").touch()
        server.release()
        assert refresher.finish(process).code == 0
    assert (published(refresher), refresher.grant("notion").generation) == (2, 1)


def test_a_stop_does_not_wait_for_a_lock_of_another_process(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a stop would take as long as the exchange of another process."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    server.script(hold=True)
    holder = refresher.start("run-once", "--force", "linear")
    with running(refresher) as process:
        wait_until(
            lambda: len(server.requests()) == 2 and under_way(refresher),
            "the exchange of the other process has started",
        )
        wait_until(lambda: _waits_for_a_lock(process.pid), "the daemon waits for the lock")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
        assert holder.poll() is None, "the daemon waited for the other process"
    server.release()
    assert refresher.finish(holder).code == 0
    assert published(refresher) == 2


def _waits_for_a_lock(pid: int) -> bool:
    # The loop, the schedule and the log have a thread each; the fourth is the rotation that waits.
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 3


def test_the_end_of_the_grace_period_is_logged_and_nothing_is_lost(refresher: Command) -> None:
    """If it failed, a disk error during a stop would lose the only copy of a refresh token."""
    need(parts.no_strace())
    attached = threading.Event()
    output = refresher.home / "strace"
    tracing: list[subprocess.Popen[bytes]] = []

    def hold() -> None:
        # After the answer, every fsync fails.
        if not attached.is_set():
            with output.open("wb") as stderr:
                tracer = subprocess.Popen(
                    ["strace", "-f", "-e", "inject=fsync:error=EIO", "-p", str(process.pid)], stderr=stderr
                )
            wait_until(lambda: b"attached" in output.read_bytes(), "the tracer is attached")
            tracing.append(tracer)
            attached.set()

    with TokenServer(lambda _: 3600, hold) as server:
        refresher.import_grant("linear", server.grant("client"))
        with running(refresher, "--grace", "10s") as process:
            assert attached.wait(90)
            process.send_signal(signal.SIGTERM)
            assert "NOT SAVED YET" in "".join(heard(process, "not saved within the grace period of 10 s"))
            tracing[0].send_signal(signal.SIGINT)  # it detaches from the process
            tracing[0].wait(90)
            done = refresher.finish(process)
        assert done.code == 0
        assert published(refresher) in (-1, 1)
        assert refresher("run-once").code == 0
        assert published(refresher) == 1
        assert len(server.asked["client"]) == 1, "the token was lost, or fetched twice"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_to_an_idle_daemon_is_no_failure(refresher: Command, number: signal.Signals) -> None:
    """If it failed, a supervisor would see a crash if Ctrl-C is pressed twice."""
    for _ in range(5):
        with running(refresher) as process:
            assert process.stderr is not None
            process.stderr.readline()
            process.send_signal(number)
            while process.poll() is None:
                process.send_signal(number)
            assert process.returncode == 0
            process.communicate()


def test_signals_during_the_start_are_handled(refresher: Command) -> None:
    """If it failed, a stop right after the start would kill the daemon, or be lost in a container."""
    # The signals come while refresher loads its modules; before that, Python itself handles them.
    code = (
        "import os, signal, sys, importlib.abc\n"
        "class Late(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'refresher.daemon.loop':\n"
        "            os.kill(os.getpid(), signal.SIGHUP)\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Late())\n"
        "from refresher.cli.main import run\n"
        "sys.exit(run(['run']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=refresher.environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# --- kills --------------------------------------------------------------------------------------------------------


def test_a_daemon_killed_during_an_exchange_recovers_after_a_restart(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a killed daemon would need a person."""
    server = own_oidc(accessTokenTtl=10)
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        first = refresher.token("linear")
        # The server has not used the refresh token, but refresher cannot know that.
        in_mid_exchange(refresher, server, status=503)
        process.kill()
        process.communicate()
    with running(refresher) as process:
        wait_until(lambda: refresher.token("linear").error is not None, "the token file reports it")
        problem = refresher.token("linear").error
        assert problem is not None
        assert problem.code == "in_doubt"
        assert refresher.token("linear").access_token == first.access_token
        requests = server.requests()
        if time.time() < (first.expires_at or 0.0):
            assert len(requests) == 2, "the token in doubt was sent although the access token is live"
        wait_until(lambda: published(refresher) >= 2, "the grant rotates again")
        assert [request["at"] / 1000 > (first.expires_at or 0.0) for request in server.requests()[2:3]] == [True]
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
    assert server.log()["reused"] == 0


def test_the_attempt_of_a_killed_process_is_recovered_at_once(refresher: Command, own_oidc: Start) -> None:
    """If it failed, readers would not see the failure of a killed run-once until the next rotation."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        server.script(hold=True, status=503)
        killed = refresher.start("run-once", "--force")
        wait_until(lambda: len(server.requests()) == 2 and under_way(refresher), "an exchange is under way")
        killed.kill()
        killed.communicate()
        wait_until(lambda: refresher.token("linear").state == "failing", "the token file reports the failure")
        wait_until(lambda: refresher.leftovers() == [], "the attempt is recovered")
        heard(process, "linear: in_doubt")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0


# --- Retry-After ----------------------------------------------------------------------------------------------------


def test_a_publication_does_not_wait_for_the_retry_after_of_a_server(refresher: Command, own_oidc: Start) -> None:
    """If it failed, agents would be without their valid token for an hour after its file was deleted."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        server.script(status=503, headers={"retry-after": "3600"})
        (refresher.state / "demands/linear.1").touch()
        heard(process, "linear: transient")
        (refresher.state / "tokens/linear.json").unlink()
        wait_until(lambda: published(refresher) == 1, "it is published again")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
    assert len(server.requests()) == 2


# --- logs ------------------------------------------------------------------------------------------------------------


def test_json_logs_are_one_object_a_line(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a log collector would drop the messages of the daemon."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    process = refresher.start("--log-format", "json", "run")
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    in_mid_exchange(refresher, server)
    process.send_signal(signal.SIGTERM)
    output = heard(process, "stopping")
    process.send_signal(signal.SIGTERM)
    output += heard(process, "still rotating")
    server.release()
    done = refresher.finish(process)
    assert done.code == 0
    lines = [json.loads(line) for line in (*output, *done.stderr.splitlines())]
    assert len(lines) >= 4
    assert {tuple(line) for line in lines} == {("at", "level", "message")}
