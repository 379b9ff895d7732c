"""The largest memory of a process, measured by the kernel."""

import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["MEASURE", "MIB", "peak"]

MIB: Final = 1024**2

MEASURE: Final = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""Runs a command, and writes its peak in KiB to a file. Until it executes its own program, a child inherits the peak of
its parent, so this process of its own measures."""

_OWN: Final = """
import re
with open("/proc/self/status") as file:
    print(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
"""


def peak(program: str, *arguments: str) -> int:
    """Run a Python program in a process of its own, and return its peak in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", program + _OWN, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return 1024 * int(done.stdout.split()[-1])
