"""Logs of a daemon whose stderr takes nothing."""

import subprocess
import sys

PROGRAM = """
import logging, os, sys, threading, time
os.environ["TZ"] = "UTC"
time.tzset()
from refresher.common import logs
reader, writer = os.pipe()
os.dup2(writer, 2)
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, b"x" * 4095 + b"\\n")
except BlockingIOError:
    os.set_blocking(writer, True)
logs.setup("text", 1, nonblocking=True)
log = logging.getLogger("refresher.test")
for number in range(5000):
    log.info("line %d %s", number, "x" * 100)
print("not held up", flush=True)
read = []
threading.Thread(target=lambda: [read.append(os.read(reader, 65536)) for _ in iter(int, 1)], daemon=True).start()
logging.getLogger("refresher").handlers[0].flush()
log.info("somebody reads again")
while b"again" not in b"".join(read) or not b"".join(read).endswith(b"\\n"):
    pass
lines = [line for line in b"".join(read).decode().splitlines() if line.strip("x")]
print(all("+00:00 refresher: line " in line for line in lines[:-1]))
print(lines[-1].partition(" ")[2])
"""


def test_lines_that_nobody_reads_are_counted_and_the_rest_comes_whole() -> None:
    """If it failed, a stalled log would stop the daemon, or its gaps would go unnoticed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    first, whole, lost = done.stdout.splitlines()
    assert (first, whole) == ("not held up", "True")
    assert lost.startswith("refresher: somebody reads again (")
    assert lost.endswith(" earlier lines were lost: nobody read them)")
