"""Stands for ``python -m MODULE ARGUMENT...`` where another program starts it: the warm interpreter runs it.

    python -I -S tests/servers/stub.py SOCKET MODULE [ARGUMENT...]

It loads as little as it can; see ``tests/support/warm.py``.
"""

import json
import os
import signal
import socket
import sys

connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except OSError:  # no test has started it
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
request = {
    "module": sys.argv[2],
    "arguments": sys.argv[3:],
    "cwd": os.getcwd(),  # noqa: PTH109  pathlib takes 10 ms
    "environment": dict(os.environ),
    "stopped": False,
    "waits": True,
}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda came, _: os.kill(pid, came))
for stream in (0, 1, 2):
    os.close(stream)
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
