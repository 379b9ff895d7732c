"""Helpers that are killed while a token is refreshed: the refresh completes, and the login is whole."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.kills import attached
from tests.support.oidc import OIDC
from tests.support.parts import no_strace
from tests.support.raw_server import RawServer
from tests.support.token_server import Gate, TokenServer

Start = Callable[..., OIDC]


def start(refresher: Command, *arguments: str) -> subprocess.Popen[str]:
    """Start a helper in a process group of its own."""
    return refresher.start(*arguments, prefix=("setsid",))


def child_of(process: subprocess.Popen[str]) -> int:
    """Wait for the process that refreshes, and return its id."""
    found: list[int] = []

    def started() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        found[:] = [
            int(pid)
            for pid in children.read_text().split()
            if b"rotate-detached" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return found != []

    wait_until(started, "the process that refreshes has started")
    return found[0]


def kill(refresher: Command, process: subprocess.Popen[str]) -> None:
    """Kill the helper with its process group, as codex does; its pipes are closed with it."""
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGKILL)
    # It would not return while another process had the pipes of the helper.
    assert refresher.finish(process) == (-signal.SIGKILL, "", "")


def check_whole(refresher: Command, spent: Callable[[], int]) -> None:
    """Wait for the rotation, and check that nothing is in doubt and that the next rotation works."""
    published = refresher.tokens / "linear.json"
    wait_until(published.exists, "the refresh completes without the helper")
    wait_until(lambda: refresher.leftovers() == [], "the attempt is complete")
    assert refresher.grant("linear").failure is None
    assert refresher("token", "linear").stdout == f"{refresher.token('linear').access_token}\n"
    done = refresher("run-once", "--force", "--json")
    assert (done.outcome, spent()) == ("rotated", 2)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a grant."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_killed_before_the_request(refresher: Command) -> None:
    """If it failed, a helper that is killed early would leave a process that does nothing, or half of a refresh."""
    with TokenServer(lambda _: 3600, grace=0) as server:
        refresher.import_grant("linear", server.grant("client"))
        with held(refresher.directories.lock("linear")):
            process = start(refresher, "headers", "linear", "--wait", "1h")
            child_of(process)
            kill(refresher, process)
            assert server.presented["client"] == []
        check_whole(refresher, lambda: len(server.presented["client"]))
        assert server.reused == 0


@pytest.mark.parametrize("command", ["token", "headers"])
def test_killed_while_a_real_server_is_slow(refresher: Command, own_oidc: Start, command: str) -> None:
    """If it failed, codex, which kills its helper after 10 s, would cost a person the login at each slow answer."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(hold=True, process=True)
    process = start(refresher, command, "linear", "--wait", "1h")
    wait_until(lambda: len(server.requests()) == 1, "the request has left")
    kill(refresher, process)
    server.release()
    check_whole(refresher, lambda: len(server.requests()))
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def test_killed_in_the_middle_of_the_answer(refresher: Command) -> None:
    """If it failed, a kill between two packets of the answer would cost a person the login."""
    half, killed = threading.Event(), threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        tokens = {
            "access_token": "access-token-of-the-tests",
            "refresh_token": "the-next-refresh-token",
            "expires_in": 3600,
        }
        body = json.dumps(tokens | {"token_type": "Bearer"}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:60]))
        half.set()
        assert killed.wait(90)
        connection.sendall(body[60:])

    with RawServer(answer) as server:
        fields: dict[str, Any] = {"client_id": "client", "refresh_token": "the-first-refresh-token"}
        fields |= {"token_endpoint": server.token_endpoint, "server_url": "https://mcp.example/mcp"}
        refresher.import_grant("linear", fields)
        refresher.vault.learn("the-next-refresh-token")
        process = start(refresher, "headers", "linear", "--wait", "1h")
        assert half.wait(90)
        kill(refresher, process)
        killed.set()
        check_whole(refresher, lambda: len(server.requests))
        assert b"the-next-refresh-token" in server.requests[1]


@pytest.mark.parametrize("point", ["before the answer is read", "during persist"])
def test_killed_around_the_save(refresher: Command, point: str) -> None:
    """If it failed, a kill in the moment of the save would cost a person the login."""
    need(no_strace())
    gate = Gate()
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = start(refresher, "headers", "linear", "--wait", "1h")
        child = child_of(process)
        assert gate.reached.wait(90)
        if point == "during persist":
            pid = subprocess.Popen(["true"])  # has the attributes that strace's helper needs
            pid.wait()
            pid.pid = child
            # Each rename waits for a second: the answer is on the disk, and the record is still the old one.
            tracer = attached(pid, ("rename",), ("-o", "/dev/null", "-e", "inject=rename:delay_enter=1000000"))  # type: ignore[arg-type]
            gate.opened.set()
            following = refresher.directories.grants / "linear.next"
            wait_until(lambda: not following.exists() or b'"generation"' in following.read_bytes(), "it is being saved")
            assert refresher.grant("linear").generation == 0
            kill(refresher, process)
            tracer.communicate()
        else:
            os.kill(child, signal.SIGSTOP)
            gate.opened.set()
            kill(refresher, process)
            os.kill(child, signal.SIGCONT)
        check_whole(refresher, lambda: len(server.presented["client"]))
        assert server.reused == 0


def test_a_termination_of_the_whole_tree_completes_the_refresh(refresher: Command) -> None:
    """If it failed, the end of a service or of a session would cost a person the login."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = start(refresher, "headers", "linear", "--wait", "1h")
        child = child_of(process)
        assert gate.reached.wait(90)
        for pid in (child, process.pid):
            os.kill(pid, signal.SIGTERM)
        assert refresher.finish(process).code == 128 + signal.SIGTERM
        gate.opened.set()
        check_whole(refresher, lambda: len(server.presented["client"]))


def test_a_killed_process_that_refreshes_is_reported(refresher: Command) -> None:
    """If it failed, a helper would start one process after the other, or its person would not know what to look at."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = start(refresher, "headers", "linear", "--wait", "1h")
        child = child_of(process)
        assert gate.reached.wait(90)
        os.kill(child, signal.SIGKILL)
        done = refresher.finish(process)
        gate.opened.set()
    assert done.code == 4
    assert "has ended without a result; 'refresher run-once linear' shows" in done.stderr


def test_the_process_that_refreshes_has_no_secret_and_ends(refresher: Command) -> None:
    """If it failed, the list of processes would show a token, or each refresh would leave a process behind."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = start(refresher, "headers", "linear", "--wait", "1h")
        child = child_of(process)
        assert gate.reached.wait(90)
        place = Path(f"/proc/{child}")
        assert (os.getsid(child), os.getpgid(child)) == (child, child)
        shown = (place / "cmdline").read_text() + (place / "environ").read_text()
        assert not refresher.vault.leaks_in(shown)
        here, there = (
            {str((Path("/proc") / str(pid) / "fd" / str(number)).readlink()) for number in range(3)}
            for pid in (process.pid, child)
        )
        assert there & here <= {"/dev/null"}, "it has a stream of the helper"
        gate.opened.set()
        assert refresher.finish(process).code == 0
    assert not place.exists(), "it still runs, or nobody has reaped it"
