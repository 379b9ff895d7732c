"""Accept the connections of agents, bound them, and stop in good order."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Final, NamedTuple

import uvloop

from refresher.common.errors import ConfigError
from refresher.gateway.access import Access
from refresher.gateway.connections import Server
from refresher.gateway.forwarding import Forwarder
from refresher.gateway.keys import Keys, load
from shim import FileTokenSource

__all__ = ["Plan", "serve", "server_for", "shown"]

log = logging.getLogger(__name__)

_MOST_CONNECTIONS: Final = 1000
_SPARE: Final = 24
"""Descriptors besides those of connections, for half of the connections."""
_IDLE: Final = 75.0
"""Seconds that a connection may take for its first request, and between two."""
_GRACE: Final = 9.0
"""Seconds that running requests have at a stop. ``run`` waits a second longer for the end of the gateway."""
_CLEANUP: Final = 0.5
_KEY_POLL: Final = 1.0
_LARGEST_HEADER: Final = 32 * 1024
_READ_AHEAD: Final = 64 * 1024
_BACKLOG: Final = 512


class Plan(NamedTuple):
    """What a gateway needs to know."""

    address: tuple[str, int] | Path
    """Host and port, or the path of a unix socket."""
    keys_file: str
    hosts: frozenset[str]
    """Names by which requests may address the gateway."""
    users: frozenset[int]
    """Other users who may use the unix socket."""
    source: Callable[[str], FileTokenSource]
    tls: ssl.SSLContext
    proxy: Callable[[str, str], str | None]
    program: str = "refresher"
    """The command refresher, with the options of its directories."""
    add_key: str = "refresher gateway key add AGENT"
    lifeline: int | None = None
    """A descriptor: the gateway ends when its other end closes."""


def serve(plan: Plan) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``ConfigError``."""
    # The last resort at a stop: a thread that waits for a name server or for a disk cannot be ended.
    end = threading.Timer(_GRACE + _CLEANUP, os._exit, (0,))
    end.daemon = True
    try:
        uvloop.run(_serve(plan, end))  # half as many requests a second again, and a quarter of the time at p99
    finally:
        end.cancel()


async def _serve(plan: Plan, end: threading.Timer) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # there is nothing to read again
    if plan.lifeline is not None:
        lifeline = plan.lifeline

        def ended() -> None:
            loop.remove_reader(lifeline)  # its end stays readable
            stopping.set()

        loop.add_reader(lifeline, ended)
    unix = isinstance(plan.address, Path)
    if not unix:
        await _await_key(plan, stopping)
        if stopping.is_set():
            return
    access = Access(Keys(plan.keys_file), plan.hosts, plan.users | {os.geteuid()} if unix else None, plan.add_key)
    forwarder = Forwarder(access, plan.source, tls=plan.tls, proxy=plan.proxy, program=plan.program)
    server = server_for(forwarder, _places())
    listener = _listener(plan)
    bound = plan.address.stat().st_ino if isinstance(plan.address, Path) else None
    accepting = await (loop.create_unix_server if unix else loop.create_server)(server, sock=listener, backlog=_BACKLOG)
    log.info("gateway: listening on %s", shown(listener))
    await stopping.wait()
    log.info("gateway: stopping")
    with suppress(RuntimeError):  # no thread is left
        end.start()
    accepting.close()
    if isinstance(plan.address, Path):
        with suppress(OSError):
            if plan.address.stat().st_ino == bound:  # not that of a gateway that was started meanwhile
                plan.address.unlink()
    for stream in list(forwarder.streams):
        stream.cancel()
    server.pre_shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE):
            await server.shutdown(2 * _GRACE)  # by itself, aiohttp waits twice as long as it is given
    await forwarder.close()


async def _await_key(plan: Plan, stopping: asyncio.Event) -> None:
    """Return when there is a key, or at a stop. Only the gateway of ``run`` waits, others raise ``ConfigError``."""
    said = None
    while not stopping.is_set() and (problem := _key_problem(plan)) is not None:
        if plan.lifeline is None:
            raise ConfigError(problem)
        if problem != said:
            said = problem
            log.warning("gateway: %s; it starts when there is a key", problem)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _KEY_POLL)


def _key_problem(plan: Plan) -> str | None:
    try:
        if load(plan.keys_file):
            return None
    except ConfigError as error:
        return str(error)
    program = plan.program + plan.add_key.removeprefix("refresher")
    return (
        f"there is no key in {plan.keys_file}, and any program could use this address: run '{program}', or give the "
        "gateway a unix socket, which needs none"
    )


def _places() -> int:
    """Return how many connections of agents there may be. Each can need a connection to a server."""
    wanted = 2 * _MOST_CONNECTIONS + 2 * _SPARE
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if soft != RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == RLIM_INFINITY else min(wanted, hard)
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    return _MOST_CONNECTIONS if soft == RLIM_INFINITY else max(min(_MOST_CONNECTIONS, soft // 2 - _SPARE), 8)


def server_for(forwarder: Forwarder, most: int = _MOST_CONNECTIONS) -> Server:
    """Return the HTTP server for what ``forwarder`` answers, on so many connections at most."""
    quiet = logging.getLogger("aiohttp.server")  # its lines hold requests
    quiet.disabled = True
    return Server(
        forwarder.answer,
        forwarder.refuse,
        most,
        keepalive_timeout=_IDLE,
        max_line_size=_LARGEST_HEADER,
        max_field_size=_LARGEST_HEADER,
        auto_decompress=False,
        read_bufsize=_READ_AHEAD,
        access_log=None,
        logger=quiet,
    )


def shown(listener: socket.socket) -> str:
    """Return the address of a listener as in ``--listen``."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _listener(plan: Plan) -> socket.socket:
    """Return the socket that listens at the address. Raises ``ConfigError``."""
    if isinstance(plan.address, Path):
        return _unix_listener(plan.address, shared=bool(plan.users))
    host, port = plan.address
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {(error.strerror or 'no address').lower()}") from None
    if not _is_loopback(listener):
        log.warning(
            "gateway: warning: others can reach %s, and requests cross the network in clear text, with the keys",
            shown(listener),
        )
    return listener


def _is_loopback(listener: socket.socket) -> bool:
    import ipaddress

    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _unix_listener(path: Path, *, shared: bool) -> socket.socket:
    if sys.platform != "linux":
        raise ConfigError("a unix socket asks the kernel for the user at its other end, which works on Linux only")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except OSError:
                    path.unlink()  # nobody listens there any more
        listener.bind(str(path))  # with the umask 077
        path.chmod(0o666 if shared else 0o600)
    except OSError as error:
        raise ConfigError(f"cannot listen on unix:{path}: {(error.strerror or 'no address').lower()}") from None
    return listener
