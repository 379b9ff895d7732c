"""What does an agent pay for its tokens: at its start, for each request, and in memory?"""

import sys
import timeit
from os import stat
from typing import Final

from tests.bench.homes import Home, new_grants
from tests.bench.measuring import Run, bare_cpu, cost, pairs
from tests.support.published import Published

__all__ = ["measure"]

_CALLS: Final = 20_000
_SOURCES: Final = 100

_AGENT: Final = f"""
import sys
from shim import FileTokenSource
sources = [FileTokenSource(f"grant-{{number}}", tokens_dir=sys.argv[1], demands_dir=sys.argv[1]) for number in range({_SOURCES})]
assert all(source.current() for source in sources)
"""
_PRINT: Final = """
with open("/proc/self/status") as file:
    print(*(line.split()[1] for line in file if line.startswith("VmRSS")))
"""


def measure(run: Run) -> None:
    """Measure a source, the import of the library, and an agent with many sources."""
    run.say("FileTokenSource.current()")
    published = Published(run.root / "published")
    published.put(1)
    source, path = published.source(), str(published.path)
    current, bare = timeit.Timer(source.current), timeit.Timer(lambda: stat(path))  # noqa: PTH116  the counterpart itself
    source.current()
    run.note(
        "reading.current",
        pairs(
            15,
            lambda: 1e6 * min(current.repeat(5, _CALLS // 5)) / (_CALLS // 5),
            lambda: 1e6 * min(bare.repeat(5, _CALLS // 5)) / (_CALLS // 5),
        ),
    )
    run.say("import shim")
    run.note(
        "reading.start",
        pairs(15, lambda: 1000 * cost(sys.executable, "-c", "import shim").cpu, lambda: 1000 * bare_cpu()),
    )
    tokens = str(Home(run.root / "sources", new_grants(_SOURCES)).directories.tokens)
    run.note("reading.memory", pairs(3, lambda: _memory(_AGENT, tokens), lambda: _memory("", tokens)))


def _memory(program: str, *arguments: str) -> float:
    """Return the memory of a Python program at its end, in MiB."""
    return int(cost(sys.executable, "-c", program + _PRINT, *arguments).output) / 1024
