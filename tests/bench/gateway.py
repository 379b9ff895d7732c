"""What does the gateway cost, beside a direct call and beside nginx with a fixed header?"""

import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.bench.measuring import ROOT, CannotRun, Run
from tests.support.gateway import write_key
from tests.support.published import Published

__all__ = ["measure"]

_CONNECTIONS: Final = 32
_ROUNDS: Final = 3

_UPSTREAM: Final = """
location / { default_type application/json; return 200 '{"jsonrpc": "2.0", "id": 1, "result": {}}'; }
"""
_PROXY: Final = """
location / { proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection "";
             proxy_set_header Authorization "Bearer access-token-1"; }
"""


def measure(run: Run) -> None:
    """Send the same requests to the server itself, through nginx, and through the gateway, in turns."""
    if shutil.which("nginx") is None:
        raise CannotRun("nginx is not installed")
    with ExitStack() as stack:
        server, proxy, port = (_free_port() for _ in range(3))
        stack.enter_context(_nginx(run.root / "server", server, _UPSTREAM))
        upstream = f"upstream server {{ server 127.0.0.1:{server}; keepalive 64; }}"
        stack.enter_context(_nginx(run.root / "proxy", proxy, _PROXY, upstream))
        key = stack.enter_context(_gateway(run.root / "gateway", port, f"http://127.0.0.1:{server}"))
        ways = {"direct": (server, "/x"), "nginx": (proxy, "/x"), "gateway": (port, f"/{key}/linear/x")}
        times: dict[str, list[list[float]]] = {way: [] for way in ways}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(_ROUNDS):
            run.say(f"calls through the gateway, round {round_ + 1} of {_ROUNDS}")
            for way, (at, path) in ways.items():
                times[way].append(asyncio.run(_load(at, path, 1, run.count(2000))))
                began = time.perf_counter()
                count = run.count(10_000)
                asyncio.run(_load(at, path, _CONNECTIONS, count))
                rates[way].append(count / (time.perf_counter() - began))
    for name, place in (("p50", 50), ("p99", 99)):
        found = {way: [_percentile(each, place) for each in rounds] for way, rounds in times.items()}
        run.note(f"gateway.{name}", list(zip(found["gateway"], found["direct"], strict=True)))
        run.note(f"gateway.{name}_nginx", list(zip(found["gateway"], found["nginx"], strict=True)))
    run.note("gateway.rate", list(zip(rates["gateway"], rates["nginx"], strict=True)))


def _percentile(times: list[float], place: int) -> float:
    return 1000 * statistics.quantiles(times, n=100)[place - 1]


async def _load(port: int, path: str, connections: int, count: int) -> list[float]:
    """Send ``count`` requests over some connections; return how long each took."""
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add"}}'
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    times: list[float] = []

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // connections):
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return times


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def _nginx(root: Path, port: int, location: str, upstream: str = "") -> Iterator[None]:
    """Run an nginx with one worker."""
    root.mkdir()
    (root / "conf").write_text(
        f"daemon off; worker_processes 1; pid {root}/pid; error_log {root}/log; events {{ worker_connections 1024; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000; {upstream}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=512; {location} }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-e", f"{root}/log", "-c", f"{root}/conf"])
    try:
        _wait(port)
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _gateway(root: Path, port: int, origin: str) -> Iterator[str]:
    """Run the gateway for a server, and yield a key."""
    published = Published(root, origin)
    published.put()
    key = write_key(root / "gateway-keys.json")
    command = (sys.executable, "-m", "refresher", "--state-dir", str(root), "gateway", "--listen", f"127.0.0.1:{port}")
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"REFRESHER_CONFIG": "/dev/null"})
    try:
        _wait(port)
        yield key
    finally:
        process.terminate()
        process.wait(60)


def _wait(port: int) -> None:
    ends = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < ends, "a server did not start"
            time.sleep(0.05)
        else:
            return
