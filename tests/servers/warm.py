"""The command ``refresher``, begun by fork from a process that has loaded the MCP SDK already: it costs a second no more.

    python -m tests.servers.warm SOCKET

Takes on SOCKET what ``tests/servers/warmly.py`` hands over, prints one line of JSON when it is ready, and exits when
its stdin closes.
"""

import json
import os
import select
import socket
import sys
from typing import Any

__all__ = ["main"]

_LARGEST = 256 * 1024


def main(path: str) -> None:
    """Serve until stdin ends."""
    _load()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        print(json.dumps({}), flush=True)
        while listener in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            while _reaped():
                pass
            if os.fork() == 0:
                listener.close()
                _look_after(connection)
            connection.close()


def _load() -> None:
    import asyncio
    import webbrowser

    import anyio._backends._asyncio
    import segno

    import refresher.cli.main
    import refresher.login
    import refresher.oauth.revocation
    import refresher.operations.rotate

    assert all((asyncio, webbrowser, anyio, segno, refresher))


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _look_after(connection: socket.socket) -> None:
    """Run one command to its end, in a child of this one."""
    data, fds, _, _ = socket.recv_fds(connection, _LARGEST, 3)
    asked = json.loads(data)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        _run(asked)
    connection.sendall(f"{pid}\n".encode())
    for number, fd in enumerate(fds):
        os.close(fd)
        os.close(number)  # whoever reads the command's output waits for nobody else
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _run(asked: dict[str, Any]) -> None:
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["refresher", *asked["arguments"]]
    from refresher.__main__ import main as command

    command()


if __name__ == "__main__":
    main(sys.argv[1])
