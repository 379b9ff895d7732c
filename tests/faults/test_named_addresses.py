"""A login at a server that names addresses of this machine, or of its network, in a network namespace of its own."""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import need
from tests.support.cli import last_line
from tests.support.command import Command
from tests.support.listener import Listener

PUBLIC, PRIVATE, NEIGHBOUR, METADATA = "1.2.3.4", "10.9.9.9", "10.8.8.8", "169.254.169.254"
_CLONE_NEWNET: Final = 0x40000000


class Neighbourhood:
    """Four addresses and loopback in a network namespace; one server at each, which notes who was connected to."""

    def __init__(self) -> None:
        self.challenge = "Bearer"
        self.issuers: list[str] = []
        self.reached: list[str] = []
        """The local address of each connection, whatever was sent."""
        self.asked: list[str] = []
        with ThreadPoolExecutor(1) as thread:
            self.namespace, self._servers = thread.submit(self._build).result()
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _build(self) -> tuple[int, list[Listener]]:
        # The namespace of this thread alone; the sockets that it makes stay there.
        assert ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        commands = [f"ip address add {address}/32 dev lo" for address in (PUBLIC, PRIVATE, NEIGHBOUR, METADATA)]
        for command in ("ip link set lo up", *commands):
            subprocess.run(command.split(), check=True)
        world = self

        class Server(Listener):
            address_family = socket.AF_INET6  # and IPv4

            def get_request(self) -> Any:
                connection, peer = super().get_request()
                world.reached.append(connection.getsockname()[0].removeprefix("::ffff:"))
                return connection, peer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                world.asked.append(self.path)
                host = self.headers["Host"]
                known = {"resource": f"http://{host}/mcp", "authorization_servers": world.issuers}
                is_resource = "oauth-protected-resource" in self.path
                self.send_response(401 if self.command == "POST" else 200 if is_resource else 404)
                if self.command == "POST":
                    self.send_header("WWW-Authenticate", world.challenge)
                body = json.dumps(known).encode() if is_resource else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        servers: list[Listener] = [Server(("::", port), Handler) for port in (80, 443)]
        return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY), servers

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        os.close(self.namespace)

    def enter(self, hosts: Path) -> tuple[str, ...]:
        """Return the prefix of a command in this namespace that resolves names by ``hosts``."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        namespace = f"--net=/proc/{os.getpid()}/fd/{self.namespace}"
        return ("nsenter", namespace, "unshare", "--mount", "sh", "-c", script, str(hosts))


@pytest.fixture
def world() -> Iterator[Neighbourhood]:
    without = [name for name in ("ip", "nsenter", "unshare", "mount") if shutil.which(name) is None]
    need("a network namespace needs root" if os.geteuid() != 0 else f"no {without[0]}" if without else None)
    made = Neighbourhood()
    yield made
    made.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """Return the names that the commands resolve."""
    path = tmp_path / "hosts"
    path.write_text(
        f"127.0.0.1 localhost\n{PUBLIC} mcp.example\n{PRIVATE} mcp.internal\n{NEIGHBOUR} inside.example\n"
        "127.0.0.1 here.example\n"
    )
    return path


# A login asks three servers, and goes on to the next if an address is refused.
@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"http://{PUBLIC}/mcp", ["http://127.0.0.1", "https://127.0.0.1", "https://127.1"]),
        ("http://mcp.example/mcp", ["https://2130706433", "https://0x7f.1", "https://0.0.0.0"]),
        (f"http://{PUBLIC}/mcp", ["https://[::1]", "https://[::ffff:7f00:1]", "https://localhost"]),
        ("http://mcp.example/mcp", ["https://here.example", f"https://{PRIVATE}", f"https://{METADATA}"]),
        (f"http://{PUBLIC}/mcp", ["https://[::ffff:a9fe:a9fe]", "https://inside.example", "https://[::ffff:a09:909]"]),
    ],
)
def test_a_public_server_cannot_make_a_login_connect_to_a_nearer_network(
    refresher: Command, world: Neighbourhood, hosts: Path, url: str, named: list[str]
) -> None:
    """If it failed, a server on the Internet could send requests to services of this machine and of its network."""
    world.issuers = named
    done = refresher("login", "x", url, "--no-browser", prefix=world.enter(hosts))
    line = last_line(done, 2)
    assert line.startswith("refresher: refused to use http"), line
    assert "and the server that names it is on the public Internet; nothing was changed" in line
    assert set(world.reached) == {PUBLIC}


@pytest.mark.parametrize("named", [f"https://{PRIVATE}/x", "https://here.example/x"])
def test_a_public_server_cannot_name_its_metadata_on_a_nearer_network(
    refresher: Command, world: Neighbourhood, hosts: Path, named: str
) -> None:
    """If it failed, the first answer of a server could send a request into this network."""
    world.challenge = f'Bearer resource_metadata="{named}"'
    done = refresher("login", "x", "http://mcp.example/mcp", "--no-browser", prefix=world.enter(hosts))
    assert last_line(done, 2).startswith(f"refresher: refused to use {named}: it is on ")
    assert set(world.reached) == {PUBLIC}


@pytest.mark.parametrize(
    ("url", "named", "reached"),
    [
        ("http://mcp.internal/mcp", f"https://{NEIGHBOUR}", NEIGHBOUR),
        ("http://mcp.internal/mcp", "https://inside.example", NEIGHBOUR),
        ("http://mcp.internal/mcp", "https://mcp.example", PUBLIC),
        ("http://mcp.internal/mcp", "https://127.1", None),
        ("http://mcp.internal/mcp", f"https://{METADATA}", None),
        ("http://localhost/mcp", f"https://{NEIGHBOUR}", NEIGHBOUR),
        ("http://localhost/mcp", f"https://{METADATA}", METADATA),
    ],
)
def test_a_server_names_addresses_on_its_own_network_and_farther_ones(
    refresher: Command, world: Neighbourhood, hosts: Path, url: str, named: str, reached: str | None
) -> None:
    """If it failed, a login in the network of a company would be refused, or could reach services of this machine."""
    world.issuers = [named]
    done = refresher("login", "x", url, "--no-browser", prefix=world.enter(hosts))
    own = "127.0.0.1" if "localhost" in url else PRIVATE
    # The server at the named address has no TLS.
    line = last_line(done, 2 if reached is None else 4)
    assert line.startswith("refresher: refused to use ") is (reached is None)
    assert set(world.reached) == {own} | ({reached} if reached else set())


def test_a_login_asks_few_of_the_servers_that_are_named(refresher: Command, world: Neighbourhood, hosts: Path) -> None:
    """If it failed, one answer of a server could cause thousands of requests to others."""
    world.issuers = [f"http://127.0.0.1/{number}" for number in range(20)]
    done = refresher("login", "x", "http://localhost/mcp", "--no-browser", prefix=world.enter(hosts))
    assert "publishes no readable server metadata" in last_line(done, 2)
    assert len([path for path in world.asked if "oauth-authorization-server" in path or "openid" in path]) == 9
