"""The log of a daemon while nobody reads its stderr."""

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
print("not blocked", flush=True)
read = []
threading.Thread(target=lambda: [read.append(os.read(reader, 65536)) for _ in iter(int, 1)], daemon=True).start()
logging.getLogger("refresher").handlers[0].flush()
log.info("the reader is back")
while b"is back" not in b"".join(read) or not b"".join(read).endswith(b"\\n"):
    time.sleep(0.01)
lines = [line for line in b"".join(read).decode().splitlines() if line.strip("x")]
print(all("+00:00 refresher: line " in line for line in lines[:-1]))
print(lines[-1].partition(" ")[2])
"""


def test_lines_that_nobody_reads_are_dropped_and_counted_and_the_others_are_complete() -> None:
    """If it failed, a log that nobody reads would stop the daemon, or a gap in it would go unnoticed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=90)
    first, whole, lost = done.stdout.splitlines()
    assert (first, whole) == ("not blocked", "True")
    assert lost.startswith("refresher: the reader is back (")
    assert lost.endswith(" earlier lines were lost: nobody read them)")
