"""Health pages beside hostile neighbours: idle connections, a taken port, foreign names, strangers that answer."""

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.cli import one_line
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, running, stopped
from tests.support.token_server import TokenServer
from tests.support.unreachable import LIVE

LISTEN: Final = ("--listen", "127.0.0.1:0")

# Not by setpriv: the other user cannot enter the directory of this interpreter.
ANOTHER_USER: Final = """
import os, selectors, socket, sys
os.setgroups([]); os.setgid(12345); os.setuid(12345)
"""

# Holds connections and says nothing; opens each again that is closed. Prints how many were opened in all.
IDLE: Final = """
host, port, count, start = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
held, opened = selectors.DefaultSelector(), 0
while True:
    while len(held.get_map()) < count:
        connection = socket.socket()
        try:
            connection.connect((host, port))
            connection.send(start)
        except OSError:
            connection.close()
            break
        connection.setblocking(False)
        held.register(connection, selectors.EVENT_READ)
        opened += 1
        if opened % count == 0:
            print(opened, flush=True)
    for key, _ in held.select(0.01):
        held.unregister(key.fileobj)
        key.fileobj.close()
"""
CONNECT: Final = """
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    print(13, flush=True)
"""
TAKE: Final = """
taken = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(taken.getsockname()[1], flush=True)
while True:
    connection, _ = taken.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nI am another program")
    connection.close()
"""


@contextmanager
def neighbour(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program as another user of this machine."""
    command = [sys.executable, "-I", "-c", ANOTHER_USER + program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> int:
    """Return the number on the next line of a neighbour."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def where(process: subprocess.Popen[str]) -> str:
    """Return the HOST:PORT of the health pages, from the log."""
    found = re.search(r"http://(\S+)/healthz", heard(process, "/healthz")[-1])
    assert found is not None
    return found[1]


def probe(address: str) -> int:
    """Send one request as a probe of Kubernetes does, and return the status."""
    return httpx.get(f"http://{address}/healthz", trust_env=False, verify=False, timeout=60).status_code


def is_live(address: str) -> bool:
    """Whether a probe gets 200."""
    return probe(address) == 200


# --- idle connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "start"), [(64, ""), (600, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"), (1200, "")]
)
def test_idle_connections_of_another_user_do_not_keep_probes_from_their_answer(
    refresher: Command, count: int, start: str
) -> None:
    """If it failed, an agent could have its sidecar restarted without end."""
    refresher.bring("linear", LIVE)
    with running(refresher, *LISTEN) as process:
        address = where(process)
        host, _, port = address.partition(":")
        before = descriptors(process)
        with neighbour(IDLE, host, port, str(count), start) as idle:
            line(idle)
            for _ in range(2):
                done = refresher("health", "--live", "--listen", address)
                assert (done.code, done.stderr) == (0, ""), done.stdout
                assert refresher("health", "--live").code == 0
                assert [probe(address) for _ in range(20)] == [200] * 20
            assert descriptors(process) - before <= 520
            assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 20, "each connection got a thread"
        stopped(refresher, process)


def test_countless_connections_do_not_use_memory(refresher: Command) -> None:
    """If it failed, a neighbour could have refresher killed for its memory."""
    with running(refresher, *LISTEN) as process:
        address = where(process)
        host, _, port = address.partition(":")
        with neighbour(IDLE, host, port, "1000", "GET /") as idle:
            line(idle)
            before = resident(process)
            while line(idle) < 10_000:
                pass
            assert resident(process) - before < 16 * 1024
        wait_until(lambda: is_live(address), "a probe is answered")
        stopped(refresher, process)


def descriptors(process: subprocess.Popen[str]) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def resident(process: subprocess.Popen[str]) -> int:
    """Return the memory of a process in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


# --- the private socket -------------------------------------------------------------------------------------------


def test_health_needs_no_address(refresher: Command) -> None:
    """If it failed, another user who has the port could make every check of the service fail."""
    refresher.bring("linear", LIVE)
    with running(refresher) as process:
        wait_until(lambda: refresher("health").code == 0, "it is ready")
        assert refresher("health").stdout == "ready: 1 of 1 grant fresh\n"
        assert json.loads(refresher("health", "--json").stdout)["listening"] is None
        stopped(refresher, process)
    assert not refresher.directories.health_socket.exists()
    assert f"nothing answers at {refresher.directories.health_socket} (there is no such" in refresher("health").stdout


def test_a_stranger_at_the_address_cannot_answer_for_a_daemon_that_was_killed(refresher: Command) -> None:
    """If it failed, another user could hide for ever that nothing rotates."""
    refresher.bring("linear", LIVE)
    healthy = b'{"live":true,"ready":true,"grants":1,"fresh":1,"waiting":[],"reauthorization_required":[],'
    healthy += b'"invalid_grant_file":[]}'

    def talk(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(healthy) + healthy)

    with stranger(talk) as address:
        with running(refresher, "--listen", address) as process:
            wait_until(lambda: refresher("health", "--live").code == 0, "it is live")
            process.kill()
            refresher.finish(process)
        assert refresher("health", "--live", "--listen", address).code == 0, "the stranger is believed"
        done = refresher("health", "--live", environment={"REFRESHER_LISTEN": address})
        assert (done.code, done.stdout.startswith("nothing answers at ")) == (1, True)


def test_no_other_user_can_reach_the_private_socket(refresher: Command) -> None:
    """If it failed, another user could exhaust the socket of the probe."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        state = Path(place) / "state"
        state.mkdir(mode=0o755)
        with running(refresher, options=("--state-dir", str(state))) as process:
            wait_until(lambda: refresher("--state-dir", str(state), "health").code == 0, "it is ready")
            with neighbour(CONNECT, str(state / "grants/.health.sock")) as other:
                assert line(other) == 13
            stopped(refresher, process)


def test_a_state_directory_with_a_long_name_has_a_private_socket(refresher: Command) -> None:
    """If it failed, health would not work where the address of a socket is too short for the path."""
    state = refresher.home / ("long" * 30) / "state"
    with running(refresher, options=("--state-dir", str(state))) as process:
        wait_until(lambda: refresher("--state-dir", str(state), "health").code == 0, "it is ready")
        stopped(refresher, process)
    assert not (state / "grants/.health.sock").exists()


def test_the_private_socket_survives_kills_and_other_daemons(refresher: Command) -> None:
    """If it failed, health would get no answer after a crash, or while a second daemon starts or stops."""
    with running(refresher) as killed:
        wait_until(lambda: refresher("health").code == 0, "it is ready")
        killed.kill()
        killed.communicate()
    assert refresher.directories.health_socket.exists()
    assert refresher("health").code == 1
    with running(refresher) as first:
        wait_until(lambda: refresher("health").code == 0, "it is ready")
        inode = refresher.directories.health_socket.stat().st_ino
        with running(refresher) as second:
            heard(second, "watching")
            assert refresher("health").code == 0
            assert refresher.directories.health_socket.stat().st_ino == inode
            stopped(refresher, first)
            wait_until(lambda: refresher("health").code == 0, "the second daemon serves")
            refresher.directories.health_socket.unlink()
            wait_until(lambda: refresher("health").code == 0, "a socket that was removed is made again")
            stopped(refresher, second)


# --- a port that is taken -----------------------------------------------------------------------------------------


def test_a_port_that_is_taken_does_not_stop_rotation(refresher: Command) -> None:
    """If it failed, another user could keep refresher from starting, and tokens would expire."""
    with TokenServer(lambda _: 3600.0) as server, neighbour(TAKE, "0") as stranger:
        refresher.bring("linear", server.grant("linear"))
        address = f"127.0.0.1:{line(stranger)}"
        environment = {"REFRESHER_LISTEN": address}
        with running(refresher, environment=environment) as process:
            (*_, warning) = heard(process, "cannot listen")
            assert f"cannot listen on {address}: address already in use; refresher rotates" in warning
            assert "change --listen" in warning
            wait_until(lambda: published(refresher) == 1, "it rotates")
            wait_until(lambda: refresher("health", environment=environment).code == 0, "it is ready")
            done = refresher("health", "--live", environment=environment)
            assert done.stdout == (
                "live: 1 of 1 grant fresh; cannot listen on the address of --listen (the log says why)\n"
            )
            assert json.loads(refresher("health", "--json", environment=environment).stdout)["listening"] is False
            done = refresher("health", "--listen", address)
            assert (done.code, "is not refresher" in done.stdout) == (1, True)
            process.send_signal(signal.SIGHUP)
            heard(process, "configuration reloaded")
            stranger.kill()
            assert where(process) == address
            assert probe(address) == 200
            assert json.loads(refresher("health", "--json", environment=environment).stdout)["listening"] is True
            assert "cannot listen" not in stopped(refresher, process), "it warned again"


# --- names --------------------------------------------------------------------------------------------------------


def test_only_known_names_are_served(refresher: Command) -> None:
    """If it failed, a web page could read the names of grants with a name of its own (DNS rebinding)."""
    refresher.bring("linear", LIVE)
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('listen = "127.0.0.1:0"\nlisten_hosts = ["by-file.example"]\n')
    environment = {"REFRESHER_LISTEN_HOST": "by-environment.example other.example"}
    option = ("--listen-host", "By-Option.example", "--listen-host", "second")
    for arguments, variables, names in (
        ((), {}, ["by-file.example", "BY-FILE.example.:80"]),
        ((), environment, ["by-environment.example", "other.example:1"]),
        (option, environment, ["by-option.example", "second"]),
    ):
        with running(refresher, *arguments, environment=variables) as process:
            address = where(process)
            wait_until(partial(is_live, address), "it is live")
            allowed = ["127.0.0.1", "10.1.2.3:9464", "[::1]", "[fd00::7]:9464", "::1", "localhost", "LOCALHOST:1", ""]
            for host in (address, *allowed, *names):
                assert raw(address, f"Host: {host}\r\n").startswith("HTTP/1.1 200 "), host
            assert raw(address, "", "1.0").startswith("HTTP/1.1 200 "), "a probe of HTTP/1.0 has no Host"
            foreign = [
                "attacker.example",
                "localhost.attacker.example",
                "127.0.0.1.attacker.example:80",
                "[x]",
                "a:b:c",
            ]
            for host in (*foreign, "by-file.example" if variables else "second"):
                answer = raw(address, f"Host: {host}\r\n")
                assert answer.startswith("HTTP/1.1 421 "), (host, answer)
                assert "grants" not in answer
                assert "linear" not in answer
            both = raw(address, "Host: 127.0.0.1\r\nHost: attacker.example\r\n")
            assert both.startswith("HTTP/1.1 400 ")
            assert "linear" not in both
            stopped(refresher, process)


@pytest.mark.parametrize("name", ["", "http://x", "x:80", "a b", "*"])
def test_a_name_that_cannot_exist_is_one_line(refresher: Command, name: str) -> None:
    """If it failed, a mistyped name would be ignored silently."""
    assert "--listen-host must be a host name without a port" in one_line(refresher("run", "--listen-host", name))


def raw(address: str, headers: str, version: str = "1.1") -> str:
    """Send a request with these headers, and return the whole answer."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(f"GET /healthz HTTP/{version}\r\n{headers}\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


# --- a stranger that answers --------------------------------------------------------------------------------------

FIELDS: Final = {
    "live": True,
    "ready": True,
    "grants": 1,
    "fresh": 1,
    "waiting": [],
    "reauthorization_required": [],
    "invalid_grant_file": [],
}
OK: Final = b"HTTP/1.1 200 OK\r\n"


def body(**fields: object) -> bytes:
    """Return an answer like that of refresher, with other fields."""
    return OK + b"\r\n" + json.dumps({**FIELDS, **fields}).encode()


STRANGERS: Final[dict[str, list[bytes]]] = {
    "nested": [OK + b'\r\n{"x": ' + b"[" * 500_000],
    "nested list": [OK + b"\r\n" + b'{"waiting":' * 90_000],
    "huge number": [OK + b"\r\n" + json.dumps(FIELDS).replace('"fresh": 1', f'"fresh": {"9" * 4000}').encode()],
    "large number": [body(grants=2**60)],
    "negative": [body(grants=-1)],
    "wrong types": [body(waiting="linear", live="yes")],
    "list": [OK + b"\r\n[1]"],
    "escapes": [body(live=True, ready=False, waiting=["\x1b]0;owned\x07"])],
    "more escapes": [body(ready=False, invalid_grant_file=["a\u009b31m", "b\n"])],
    "many names": [body(waiting=["a"] * 101)],
    "escape in status": [b"HTTP/1.1 999 \x1b[31m\r\n\x1b[31m: \x1b\r\n\r\n\x1b[31m"],
    "no status": [b"\x1b[31mhello\r\n"],
    "nothing": [b""],
    "half": [OK + b"Content-Length: 1000\r\n\r\n{"],
    "wrong chunks": [OK + b"Transfer-Encoding: chunked\r\n\r\n\x1b[31m\r\n"],
    "wrong length": [OK + b"Content-Length: -5\r\n\r\n\x1b"],
    "refused name": [b"HTTP/1.1 421 \x1b[31m\r\n\r\n\x1b[31m"],
}
ENDLESS: Final[dict[str, tuple[bytes, bytes]]] = {
    "silent": (b"", b""),
    "a byte a second": (OK + b"\r\n", b" "),
    "endless headers": (OK, b"X: y\r\n"),
    "endless status line": (b"HTTP/1.1 200 ", b"x"),
    "endless continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless body": (OK + b"\r\n", b"[" * 65536),
    "endless chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


@contextmanager
def stranger(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serve on loopback as a program that is not refresher; ``talk`` gets each connection."""
    ended = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                talk(connection, ended)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)


def check_refused(refresher: Command, address: str, *forms: str) -> str:
    """Check that health refuses the answer with one clean line that says what to do, and return the last one."""
    text = ""
    for form in forms:
        arguments = (form,) if form else ()
        done = refresher("health", "--live", "--listen", address, *arguments)
        assert (done.code, done.stderr, done.stdout.count("\n")) == (1, "", 1)
        assert done.stdout.rstrip("\n").isprintable()
        text = json.loads(done.stdout)["problem"] if arguments else done.stdout
        assert "--listen" in text
        assert len(text) < 300
    return text


@pytest.mark.parametrize("answer", STRANGERS)
def test_a_stranger_that_answers_is_refused(refresher: Command, answer: str) -> None:
    """If it failed, a program on the port could write to the terminal, end health in a traceback, or pass as live."""
    with stranger(lambda connection, _: connection.sendall(STRANGERS[answer][0])) as address:
        check_refused(refresher, address, "", "--json")


@pytest.mark.parametrize("answer", ENDLESS)
def test_a_stranger_that_never_ends_does_not_hold_health(refresher: Command, answer: str) -> None:
    """If it failed, a program on the port could make a probe hang, or use up memory."""

    def talk(connection: socket.socket, ended: threading.Event) -> None:
        start, again = ENDLESS[answer]
        connection.sendall(start)
        pause = 0.0 if len(again) > 1 else 1.0
        while not ended.wait(pause):
            connection.sendall(again)

    with stranger(talk) as address:
        line = check_refused(refresher, address, "")
    # It is judged by its first mebibyte, and not read until the time is over.
    assert answer != "endless body" or "is not refresher" in line
