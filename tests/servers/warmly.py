"""Stands for a command that ``tests/servers/warm.py`` runs: hands it its own terminal, signals and exit code.

python -I -S tests/servers/warmly.py SOCKET [ARGUMENT...]
"""

import json
import os
import signal
import socket
import sys

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
asked = {"arguments": sys.argv[2:], "cwd": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109  pathlib takes its time
socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
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
