"""The real gateway: its start and its keys, who may use it, and `run --gateway`."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import need
from tests.support import chromium, devtools
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, running, stopped
from tests.support.devtools import Browser, Tab
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.published import Published
from tests.support.raw_server import RawServer

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
LISTEN = ("gateway", "--listen", "127.0.0.1:0")


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that answers each request."""
    with RawServer(lambda connection, _: connection.sendall(OK), marker=b"\r\n\r\n") as made:
        yield made


@pytest.fixture
def published(refresher: Command, server: RawServer) -> Published:
    """A token for that server."""
    refresher.state.mkdir(parents=True, mode=0o700)
    made = Published(refresher.state, server.token_endpoint.removesuffix("/token"))
    made.put()
    return made


def new_key(refresher: Command, *names: str) -> str:
    """Make a key with the command; no output of another command may contain it."""
    done = refresher("gateway", "key", "add", "agent", *names)
    assert done.code == 0, done.stderr
    key = done.stdout.strip()
    refresher.vault.learn(key)
    return key


@contextmanager
def serving(refresher: Command, *arguments: str, options: tuple[str, ...] = (), **more: Any) -> Iterator[str]:
    """Run the gateway, and return its address; it must stop in good order. ``options`` precede ``gateway``."""
    process = refresher.start(*options, *LISTEN, *arguments, **more)
    try:
        address = heard(process, "listening on ")[-1].split()[-1]
        yield f"http://{address}"
        process.terminate()
        done = refresher.finish(process)
        assert done.code == 0, done.stderr
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def get(url: str, **more: Any) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=60, **more)


def test_the_gateway_starts_with_a_key_only_and_follows_their_changes(
    refresher: Command, published: Published, server: RawServer
) -> None:
    """If it failed, any program on the machine could use the logins, or a key could not be taken back."""
    done = refresher(*LISTEN)
    assert done.code == 2
    assert "refresher gateway key add AGENT" in done.stderr
    key = new_key(refresher, "linear")
    assert refresher("gateway", "key", "add", "agent").code == 2
    with serving(refresher) as address:
        assert get(f"{address}/{key}/linear/x").text == "ok"
        assert get(f"{address}/linear/x", headers={"Authorization": f"Bearer {key}"}).text == "ok"
        assert get(f"{address}/linear/x").status_code == 403
        listed = json.loads(refresher("gateway", "key", "list", "--json").stdout)
        assert [(each["agent"], each["names"]) for each in listed["keys"]] == [("agent", ["linear"])]
        assert "agent  linear" in refresher("gateway", "key", "list").stdout
        assert refresher("gateway", "key", "remove", "agent").code == 0
        assert get(f"{address}/{key}/linear/x").status_code == 403
    assert refresher("gateway", "key", "remove", "agent").code == 2
    assert "gateway key add" in refresher("gateway", "key", "list").stderr
    assert len(server.requests) == 2


def test_commands_for_a_person_name_the_directories_and_the_keys(refresher: Command) -> None:
    """If it failed, a person would make a key where no gateway looks, or for a grant with a mistyped name."""
    options = ("--state-dir", "other", "gateway", "--keys-file", "the keys")
    done = refresher(*options, "--listen", "127.0.0.1:0")
    home = refresher.home
    add = f"refresher --state-dir {home}/other gateway key add AGENT --keys-file '{home}/the keys'"
    assert f"run '{add}'" in done.stderr
    for wanted, printed in ((("key", "list"), "key add"), (("key", "remove", "x"), "key list")):
        done = refresher(*options, *wanted)
        assert f"refresher --state-dir {home}/other gateway {printed} --keys-file '{home}/the keys'" in done.stderr
    words = shlex.split(add.replace("AGENT", "x linear"))
    done = refresher(*words[1:])
    refresher.vault.learn(done.stdout.strip())
    assert (done.code, f"warning: there is no {home}/other/tokens/linear.json" in done.stderr) == (0, True)
    with serving(refresher, "--keys-file", "the keys", options=options[:2]) as address:
        assert get(f"{address}/linear/x").json()["command"] == add


def test_an_address_that_is_taken_or_wrong_is_named(refresher: Command, published: Published) -> None:
    """If it failed, a person would read a traceback."""
    new_key(refresher)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refresher("gateway", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert (done.code, "address already in use" in done.stderr) == (2, True)
    for wrong in ("8765", "unix:relative", "[::1"):
        done = refresher("gateway", "--listen", wrong)
        assert done.code == 2
        assert "HOST:PORT" in done.stderr or "absolute" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs root, to be another user")
def test_the_gateway_needs_no_access_to_the_grants(refresher: Command, published: Published) -> None:
    """If it failed, the gateway would have to run as a user who can read refresh tokens."""
    key = new_key(refresher)
    grants = refresher.state / "grants"
    grants.mkdir(mode=0o700)
    (grants / "linear.json").write_text("not a grant")
    os.chown(grants, 12345, 12345)
    powerless = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
    with serving(refresher, prefix=powerless) as address:
        assert get(f"{address}/{key}/linear/x").text == "ok"


ASK = """
import os, socket, sys
if int(sys.argv[2]):
    os.setgroups([]); os.setgid(12345); os.setuid(12345)
with socket.socket(socket.AF_UNIX) as connection:
    try:
        connection.connect(sys.argv[1])
    except PermissionError:
        print("closed")
        sys.exit()
    connection.sendall(b"GET /linear/x HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print(connection.recv(65536).split()[1].decode())
"""


def asked(path: Path, *, other: bool) -> str:
    """Return what a user gets from a unix socket."""
    command = [sys.executable, "-I", "-c", ASK, str(path), str(int(other))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True, cwd="/")
    return done.stdout.strip()


def test_a_unix_socket_is_for_this_user(refresher: Command, published: Published, server: RawServer) -> None:
    """If it failed, agents would need a key where the system knows the user, or another user could use the logins."""
    directory = Path(tempfile.mkdtemp(prefix="gateway-"))
    path = directory / "gateway.sock"
    root = os.geteuid() == 0
    directory.chmod(0o711)
    for options, others in ((), "closed"), (("--allow-uid", "54321"), "403"), (("--allow-uid", "12345"), "200"):
        process = refresher.start("gateway", "--listen", f"unix:{path}", *options)
        heard(process, "listening on ")
        assert asked(path, other=False) == "200"
        if root:
            assert asked(path, other=True) == others
        assert refresher("gateway", "--listen", f"unix:{path}").code == 2, "another gateway took its socket"
        process.terminate()
        assert refresher.finish(process).code == 0
        assert not path.exists()
    directory.rmdir()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in listed for child in path.read_text().split()]


def answers(url: str) -> bool:
    try:
        return get(url).status_code == 200
    except httpx.HTTPError:
        return False


def gateway_of(process: subprocess.Popen[str]) -> int:
    (found,) = [pid for pid in children(process.pid) if b"--keys-file" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_run_starts_the_gateway_again_and_ends_it_with_itself(
    cold: Command, server: RawServer, end: signal.Signals
) -> None:
    """If it failed, a gateway that crashed would stay away, or outlive the service that started it."""
    cold.state.mkdir(parents=True, mode=0o700)
    published = Published(cold.state, server.token_endpoint.removesuffix("/token"))
    for directory in (published.tokens, published.demands):
        directory.chmod(0o700)
    published.put()
    listen = f"127.0.0.1:{free_port()}"
    with running(cold, "--gateway", listen) as process:
        heard(process, "run 'refresher gateway key add AGENT', or give the gateway a unix socket")
        url = f"http://{listen}/{new_key(cold)}/linear/x"
        wait_until(lambda: answers(url), "the gateway answers")
        first = gateway_of(process)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: answers(url), "the gateway answers again")
        second = gateway_of(process)
        assert second != first
        if end == signal.SIGTERM:
            log = stopped(cold, process)
            assert "the gateway ended with code -9; it starts again in 1 s" in log
            assert "no key" not in log
            assert not Path(f"/proc/{second}").exists()
        else:
            process.kill()
            process.communicate(timeout=90)  # it also ends when the gateway closes stderr
        assert not answers(url)


MCP_AGENT = """
import json, sys, threading
import anyio, httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

async def main(url):
    calls, failures = 0, []
    async with httpx2.AsyncClient(timeout=60) as http:
        async with Client(streamable_http_client(url, http_client=http), mode="legacy") as client:
            for line in iter(sys.stdin.readline, ""):
                calls += 1
                try:
                    answer = await client.call_tool("add", {"a": calls, "b": 1})
                    if answer.is_error or answer.content[0].text != str(calls + 1):
                        failures.append(repr(answer))
                except Exception as error:
                    failures.append(repr(error))
                print(calls, flush=True)
    print(json.dumps(failures[:5]), flush=True)

anyio.run(main, *sys.argv[1:])
"""


def test_an_mcp_client_with_a_key_alone_survives_rotations_and_a_revocation(refresher: Command, oidc: OIDC) -> None:
    """If it failed, an agent behind the gateway would lose calls, or begin a login of its own."""
    with MCPServerProcess(oidc) as server:
        refresher.import_grant("mcp", oidc.mint("basic", server.url, live=True) | {"server_url": server.url})
        key = new_key(refresher, "mcp")
        with running(refresher), serving(refresher) as address:
            path = server.url.partition("://")[2].partition("/")[2]
            command = [sys.executable, "-c", MCP_AGENT, f"{address}/{key}/mcp/{path}"]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
                assert agent.stdin is not None
                assert agent.stdout is not None
                for round_ in range(1, 5):
                    agent.stdin.write("call\n")
                    agent.stdin.flush()
                    assert agent.stdout.readline() == f"{round_}\n"
                    if round_ < 3:
                        assert refresher("run-once", "--force").code == 0
                    elif round_ == 3:
                        token = refresher.token("mcp").access_token
                        assert token is not None
                        oidc.end(token)
                agent.stdin.close()
                assert json.loads(agent.stdout.readline()) == []
        assert server.log()["sessions"] == 1


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 8\r\nConnection: close\r\n\r\n<p>evil\n"
ATTACK = """
(async (gateway, key) => {
  const found = [];
  for (const path of [`/${key}/linear/x`, "/linear/x"])
    for (const options of [{}, {method: "POST", body: "a=b"}, {mode: "no-cors"}, {mode: "no-cors", method: "POST", body: "x"},
                           {headers: {Authorization: `Bearer ${key}`}}])
      found.push(await fetch(gateway + path, options).then((r) => r.status || r.type, (e) => "blocked"));
  const form = document.createElement("form"), frame = document.createElement("iframe");
  frame.name = form.target = "frame"; form.method = "POST"; form.action = `${gateway}/${key}/linear/form`;
  document.body.append(frame, form);
  const loaded = new Promise((done) => frame.addEventListener("load", done));
  form.submit();
  await loaded;
  return found;
})(%s, %s)
"""


def test_no_web_page_reaches_a_server_through_the_gateway(
    refresher: Command, published: Published, server: RawServer
) -> None:
    """If it failed, a web page that knows a key could use the logins from a person's browser, with a name of its own."""
    need(chromium.missing())
    need(devtools.missing())
    key = new_key(refresher)
    with (
        RawServer(lambda connection, _: connection.sendall(PAGE), marker=b"\r\n\r\n") as evil,
        Browser() as browser,
        serving(refresher) as address,
    ):
        port = address.rpartition(":")[2]
        foreign = Tab(browser, evil.token_endpoint)
        found = foreign.evaluate(ATTACK % (json.dumps(address), json.dumps(key)))
        assert set(found) <= {"blocked", "opaque", 403}
        foreign.close()
        rebound = Tab(browser, f"http://rebound.localhost:{port}/{key}/linear/x")  # a name that leads to loopback
        assert "wrong_host" in rebound.text()
        found = rebound.evaluate(ATTACK % (json.dumps(f"http://rebound.localhost:{port}"), json.dumps(key)))
        assert set(found) <= {421, "opaque", "basic"}
        rebound.close()
        typed = Tab(browser, f"{address}/{key}/linear/x")
        assert "web_page" in typed.text()
        typed.close()
    assert not server.requests


BODY = 64 * 1024 * 1024
SINK = """
import asyncio, sys

async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    size = int(sys.argv[1])
    if head.startswith(b"PUT"):
        left = size
        while left:
            left -= len(await reader.read(min(left, 1 << 20)))
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    else:
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
        piece = bytes(1 << 18)
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def memory(pid: int) -> int:
    """Return the largest memory of a process so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_large_bodies_and_many_streams_take_no_memory(refresher: Command) -> None:
    """If it failed, one download, or an agent that reads slowly, could end the gateway for all agents."""
    refresher.state.mkdir(parents=True, mode=0o700)
    with ExitStack() as ends:
        sink = subprocess.Popen([sys.executable, "-c", SINK, str(BODY)], stdout=subprocess.PIPE, text=True)
        ends.enter_context(sink)
        ends.callback(sink.kill)
        assert sink.stdout is not None
        published = Published(refresher.state, f"http://127.0.0.1:{int(sink.stdout.readline())}")
        published.put()
        key = new_key(refresher)
        process = refresher.start(*LISTEN)
        ends.callback(process.kill)
        host, _, port = heard(process, "listening on ")[-1].split()[-1].rpartition(":")
        url = f"http://{host}:{port}/{key}/linear/x"
        get(url, headers={"Range": "x"})  # what is loaded with the first request
        before = memory(process.pid)
        sent = httpx.put(
            url,
            content=(bytes(1 << 18) for _ in range(BODY >> 18)),
            headers={"Content-Length": str(BODY)},
            trust_env=False,
            timeout=90,
        )
        assert sent.text == "ok"
        slow = [ends.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)]
        for agent in slow:
            agent.sendall(f"GET /{key}/linear/x HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for agent in slow:
            assert agent.recv(10).startswith(b"HTTP/1.1")
        with httpx.stream("GET", url, trust_env=False, timeout=90) as received:
            assert sum(map(len, received.iter_raw())) == BODY
        # At most what 101 agents have in buffers, and never what they are sent: 6.5 GB.
        assert memory(process.pid) - before < 101 * 1024 * 1024
        for agent in slow:
            agent.close()
        process.terminate()
        assert refresher.finish(process).code == 0
