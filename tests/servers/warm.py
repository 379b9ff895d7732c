"""Runs modules by fork from a process that has loaded them already: a start costs 15 ms instead of 100.

    python -m tests.servers.warm SOCKET

Takes on SOCKET what ``tests/support/warm.py`` and ``tests/servers/stub.py`` send, prints a line when it is ready, and
exits when its stdin closes.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

__all__ = ["main"]

_LARGEST = 256 * 1024


def main(path: str) -> None:
    """Serve until stdin ends."""
    _load()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        print("ready", flush=True)
        while listener in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                _start(connection)
            while _reaped():
                pass


def _load() -> None:
    import refresher

    packages = pkgutil.walk_packages(refresher.__path__, "refresher.")
    names = [package.name for package in packages if not package.name.endswith("__main__")]
    # What httpx and the event loop load when a request is sent.
    names += ["anyio._backends._asyncio", "encodings.idna", "httpcore._backends.anyio", "segno", "uuid", "webbrowser"]
    # What the MCP servers of the tests load.
    names += [
        "mcp.server.auth.provider",
        "mcp.server.mcpserver",
        "uvicorn",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.h11_impl",
    ]
    names += ["tests.support.conforming", "tests.support.person"]
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _start(connection: socket.socket) -> None:
    """Start what the connection asks for, and answer with its process id.

    It becomes an orphan, which the asking process has for a child; or, if that waits for an answer, its exit code follows.
    """
    data, fds, _, _ = socket.recv_fds(connection, _LARGEST, 3)
    asked = json.loads(data)
    between = os.fork()
    if between == 0:
        _start_between(connection, asked, fds)
    for fd in fds:
        os.close(fd)
    if not asked["waits"]:
        os.waitpid(between, 0)
        connection.sendall(b"adopted\n")  # only now has the orphan its parent


def _start_between(connection: socket.socket, asked: dict[str, Any], fds: list[int]) -> NoReturn:
    child = os.fork()
    if child == 0:
        _run(asked, fds)
    connection.sendall(f"{child}\n".encode())
    if asked["waits"]:
        os.closerange(0, 3)  # the readers of the child's output wait for the child alone
        for fd in fds:
            os.close(fd)
        if connection.fileno() in select.select([connection.fileno(), os.pidfd_open(child)], [], [])[0]:
            os.kill(child, signal.SIGKILL)  # nobody waits any more
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _run(asked: dict[str, Any], fds: list[int]) -> NoReturn:
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    # As a new interpreter does: the streams that were open before know another kind of file.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115  descriptors
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    if asked["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.argv = ["", *asked["arguments"]]
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    # What the interpreter does at its end, without the release of each object, which takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # the interpreter changes the code
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main(sys.argv[1])
