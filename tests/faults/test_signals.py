"""Signals, closed terminals and unread logs, at any point of ``run`` and ``run-once``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.conftest import need
from tests.support.command import Command, Done, wait_until
from tests.support.daemon import published
from tests.support.oidc import OIDC
from tests.support.parts import injecting, no_strace
from tests.support.terminal import at_a_terminal
from tests.support.token_server import Gate, TokenServer

Start = Callable[..., OIDC]

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
CALLS = [
    "flock",
    "fsync",
    "pwrite64",
    "fchmod",
    "connect",
    "sendto",
    "recvfrom",
    "ftruncate",
    "rename",
    "renameat",
    "unlink",
    "unlinkat",
]


def check_complete(refresher: Command, server: OIDC, generation: int) -> None:
    """Check that each request was answered, saved and published, and that nothing is left or in doubt."""
    grant = refresher.grant("linear")
    assert (grant.generation, grant.doubt, grant.failure) == (generation, None, None)
    assert refresher.leftovers() == []
    assert len(server.requests()) == generation
    assert generation in (0, published(refresher))


# --- at every system call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_a_signal_at_any_system_call_of_a_run_loses_no_answer(refresher: Command, own_oidc: Start, call: str) -> None:
    """If it failed, a signal at the wrong moment would cost a login, or a wrong exit code would raise an alarm."""
    need(no_strace())
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    generation, first = 0, CALLS.index(call)
    for number in range(1, 40):
        signalled = SIGNALS[(first + number) % 3]
        prefix = injecting(call, f"signal={signalled.name}:when={number}")
        done = refresher.finish(refresher.start("run-once", "--force", "--json", prefix=prefix))
        assert done.outcome in ("rotated", "interrupted")
        generation += done.outcome == "rotated"
        check_complete(refresher, server, generation)
        if done.code == 0:
            break
        assert done.code == 128 + signalled, done
        # A signal can interrupt a run only before the exchange.
        assert done.outcome == "rotated" or call in ("flock", "fsync", "pwrite64", "fchmod")
    else:
        pytest.fail(f"a run makes more than 40 calls of {call}")
    assert number > 1, f"a run makes no {call}"
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


@pytest.mark.parametrize("call", ["fsync", "recvfrom"])
def test_a_signal_at_any_system_call_stops_a_daemon_without_loss(
    refresher: Command, own_oidc: Start, call: str
) -> None:
    """If it failed, one of a thousand restarts would cost a login."""
    need(no_strace())
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    first = CALLS.index(call)
    trace = refresher.home / "trace"
    for number in range(1, 20):
        refresher.import_grant("linear", server.mint(), "--replace")
        before, requests_before = refresher.grant("linear").generation, len(server.requests())
        signalled = SIGNALS[(first + number) % 3]
        prefix = injecting(call, f"signal={signalled.name}:when={number}", output=trace)
        process = refresher.start("run", prefix=prefix)
        try:
            wait_until(partial(_ended_or_idle, refresher, process, before), "the daemon has ended or rotated")
            reached = f"--- {signalled.name}" in trace.read_text()
        finally:
            if process.poll() is None:
                process.terminate()
            done = refresher.finish(process)
        assert done.code == 0, done
        grant = refresher.grant("linear")
        assert (grant.doubt, grant.failure) == (None, None)
        assert grant.generation - before == len(server.requests()) - requests_before <= 1
        assert refresher.leftovers() == []
        if not reached:
            break
    else:
        pytest.fail(f"a daemon makes more than 20 calls of {call}")
    assert number > 1, f"a daemon makes no {call}"
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def _ended_or_idle(refresher: Command, process: subprocess.Popen[str], before: int) -> bool:
    return process.poll() is not None or (published(refresher) > before and refresher.leftovers() == [])


# --- terminals that are closed ------------------------------------------------------------------------------------


def test_a_terminal_that_is_closed_during_an_exchange_costs_no_answer(refresher: Command) -> None:
    """If it failed, a user who closes a terminal window would lose a login."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server:
        refresher.import_grant("linear", server.grant("client"))
        process, master = at_a_terminal(refresher, "-v", "run-once")
        try:
            assert gate.reached.wait(60)
            os.close(master)
            gate.opened.set()
            assert process.wait(90) == 128 + signal.SIGHUP
        finally:
            process.kill()
            process.wait()
        assert (published(refresher), refresher.leftovers()) == (1, [])
        assert refresher("run-once", "--force").code == 0
        assert server.reused == 0


def _check_running(refresher: Command, process: subprocess.Popen[Any]) -> None:
    """Check that a daemon rotates after a demand for generation 1, and stops after SIGTERM."""
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "the daemon rotates after the demand")
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0


def test_a_daemon_keeps_running_after_its_terminal_is_closed(refresher: Command) -> None:
    """If it failed, tokens would expire after a user closes a terminal window."""
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("client"))
        process, master = at_a_terminal(refresher, "run")
        try:
            wait_until(lambda: published(refresher) == 1, "the first token is there")
            os.close(master)
            _check_running(refresher, process)
        finally:
            process.kill()
            process.wait()


# --- unread logs --------------------------------------------------------------------------------------------------


def full_pipe() -> tuple[int, int]:
    """Return a full pipe."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("stream", ["stalled", "closed"])
def test_a_run_ends_even_if_its_messages_are_not_read(refresher: Command, stream: str) -> None:
    """If it failed, a stalled log would keep the lock of a grant held, and no other process could rotate it."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server:
        refresher.import_grant("linear", server.grant("client"))
        # This file causes a message while the lock is held.
        (refresher.state / "grants/linear.next").write_bytes(b"an unknown file")
        reader, writer = full_pipe()
        if stream == "closed":
            os.close(reader)
        process = subprocess.Popen(
            [sys.executable, "-m", "refresher", "-v", "run-once", "--json"],
            env=refresher.environment,
            cwd=refresher.home,
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
        )
        os.close(writer)
        try:
            assert gate.reached.wait(60)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            gate.opened.set()
            stdout, _ = process.communicate(timeout=90)
            assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
            assert Done(process.returncode, stdout, "").outcome == "rotated"
        finally:
            process.kill()
            process.wait()
            if stream == "stalled":
                os.close(reader)
        assert published(refresher) == 1
        assert [name.partition(".aside.")[0] for name in refresher.leftovers()] == ["linear.next"]
        assert server.reused == 0


@pytest.mark.parametrize("stream", ["stalled", "closed"])
def test_an_unread_log_delays_no_rotation(refresher: Command, own_oidc: Start, stream: str) -> None:
    """If it failed, every token would expire after a log pipe is full or closed."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    reader, writer = full_pipe()
    if stream == "closed":
        os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "refresher", "run"], env=refresher.environment, cwd=refresher.home, stderr=writer
    )
    os.close(writer)
    try:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        _check_running(refresher, process)
    finally:
        process.kill()
        process.wait()
        if stream == "stalled":
            os.close(reader)
