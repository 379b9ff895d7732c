"""The daemon under signals and kills, and beside servers that want to be left alone."""

import json
import signal
import subprocess
import sys
import threading
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
def test_stopped_in_mid_exchange_the_answer_is_saved_and_published(
    refresher: Command, own_oidc: Start, number: signal.Signals
) -> None:
    """If it failed, each restart of a machine could cost a login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(number)
        assert "first linear is finished" in heard(process, "stopping")[-1]
        server.release()
        done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert published(refresher) == 2
    assert server.introspect(refresher.token("linear").access_token)["active"]
    assert refresher.leftovers() == []
    assert refresher("run-once", "--force").code == 0
    assert server.log()["reused"] == 0


def test_more_signals_say_what_would_be_lost_and_lose_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, an impatient person would destroy what the first Ctrl-C protects."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        heard(process, "stopping")
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            heard(process, "still finishing linear; killed now")
        server.release()
        done = refresher.finish(process)
    assert done.code == 0
    assert published(refresher) == 2
    assert server.log()["reused"] == 0


def test_stopped_nothing_new_is_begun(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a pod would be killed in the middle of an exchange that nobody had to begin."""
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


def test_a_stop_while_another_process_holds_the_lock_ends_at_once(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a stop would wait for a stranger."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    server.script(hold=True)
    holder = refresher.start("run-once", "--force", "linear")
    with running(refresher) as process:
        wait_until(lambda: len(server.requests()) == 2 and under_way(refresher), "the other one is under way")
        wait_until(lambda: _waits_for_a_lock(process.pid), "the daemon waits for it")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
        assert holder.poll() is None, "it has waited for the other one"
    server.release()
    assert refresher.finish(holder).code == 0
    assert published(refresher) == 2


def _waits_for_a_lock(pid: int) -> bool:
    # One thread looks, one rings, one writes the log: the fourth is the rotation, and waits.
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 3


def test_the_grace_says_when_it_is_over_and_still_nothing_is_lost(refresher: Command) -> None:
    """If it failed, a disk that refuses for a minute would cost the only copy of a refresh token at a stop."""
    need(parts.no_strace())
    attached = threading.Event()
    words = refresher.home / "strace"
    tracing: list[subprocess.Popen[bytes]] = []

    def hold() -> None:
        # From the answer on, no file can be made durable.
        if not attached.is_set():
            with words.open("wb") as stderr:
                tracer = subprocess.Popen(
                    ["strace", "-f", "-e", "inject=fsync:error=EIO", "-p", str(process.pid)], stderr=stderr
                )
            wait_until(lambda: b"attached" in words.read_bytes(), "the tracer is there")
            tracing.append(tracer)
            attached.set()

    with TokenServer(lambda _: 3600, hold) as server:
        refresher.import_grant("linear", server.grant("client"))
        with running(refresher, "--grace", "10s") as process:
            assert attached.wait(30)
            process.send_signal(signal.SIGTERM)
            assert "NOT SAVED YET" in "".join(heard(process, "the grace of 10 s is over"))
            tracing[0].send_signal(signal.SIGINT)  # it lets go of the process
            tracing[0].wait(30)
            done = refresher.finish(process)
        assert done.code == 0
        assert published(refresher) in (-1, 1)
        assert refresher("run-once").code == 0
        assert published(refresher) == 1
        assert len(server.asked["client"]) == 1, "the token was lost, or fetched twice"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_to_an_idle_daemon_is_no_failure(refresher: Command, number: signal.Signals) -> None:
    """If it failed, an impatient Ctrl-C would make a supervisor believe that a clean stop was a crash."""
    for _ in range(5):
        with running(refresher) as process:
            assert process.stderr is not None
            process.stderr.readline()
            process.send_signal(number)
            while process.poll() is None:
                process.send_signal(number)
            assert process.returncode == 0
            process.communicate()


def test_signals_during_the_start_are_heard(refresher: Command) -> None:
    """If it failed, a reload or a stop right after the start would kill the daemon, or be lost where it is process 1."""
    # Python's own start aside, in which nobody can listen: the first of our modules is there.
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


def test_killed_in_mid_exchange_and_started_again_it_goes_on(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a daemon that the kernel has killed would need a person."""
    server = own_oidc(accessTokenTtl=6)
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        # The server has not spent the token; nobody here can know that.
        in_mid_exchange(refresher, server, status=503)
        process.kill()
        process.communicate()
    with running(refresher) as process:
        wait_until(lambda: refresher.token("linear").error is not None, "it says so")
        problem = refresher.token("linear").error
        assert problem is not None
        assert problem.code == "in_doubt"
        live = server.introspect(refresher.token("linear").access_token)
        assert live["active"], "it came too late for this test"
        assert len(server.requests()) == 2, "the token in doubt was sent while the access token lived"
        wait_until(lambda: published(refresher) == 2, "it went on by itself")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
    assert server.log()["reused"] == 0


def test_an_attempt_of_another_process_that_was_killed_is_settled_at_once(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a killed run-once would leave readers without a word until the next rotation."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher) as process:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        server.script(hold=True, status=503)
        killed = refresher.start("run-once", "--force")
        wait_until(lambda: len(server.requests()) == 2 and under_way(refresher), "an exchange is under way")
        killed.kill()
        killed.communicate()
        wait_until(lambda: refresher.token("linear").state == "failing", "readers are told")
        wait_until(lambda: refresher.leftovers() == [], "it is settled")
        heard(process, "linear: in_doubt")
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0


# --- servers that want to be left alone ---------------------------------------------------------------------------


def test_what_needs_no_server_does_not_wait_for_one_that_wants_to_be_left_alone(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a tidied tokens directory would leave agents without their live token for an hour."""
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
    """If it failed, a collector of logs would drop what the daemon says."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    process = refresher.start("--log-format", "json", "run")
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    in_mid_exchange(refresher, server)
    process.send_signal(signal.SIGTERM)
    said = heard(process, "stopping")
    process.send_signal(signal.SIGTERM)
    said += heard(process, "still finishing")
    server.release()
    done = refresher.finish(process)
    assert done.code == 0
    lines = [json.loads(line) for line in (*said, *done.stderr.splitlines())]
    assert len(lines) >= 4
    assert {tuple(line) for line in lines} == {("at", "level", "message")}
