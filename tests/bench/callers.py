"""Callers that share a token.

    python -m tests.bench.callers '{"url": ..., "name": ..., "tokens": ..., "demands": ..., "calls": 1, "processes": 1}'

``name``: the grant; ``null``: a fixed header. Makes so many calls at once in each process, and prints the seconds that they
took, and how many of them succeeded.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import httpx2

from shim import FileTokenSource
from shim.httpx2 import BearerAuth

_WAIT = 60.0
_LIMITS = httpx2.Limits(max_connections=100)


async def _make_calls(plan: dict[str, Any]) -> int:
    """Make the calls of this process; return how many succeeded."""
    auth, headers = None, {"Authorization": "Bearer fixed"}
    if plan["name"] is not None:
        source = FileTokenSource(plan["name"], tokens_dir=plan["tokens"], demands_dir=plan["demands"])
        auth, headers = BearerAuth(source, wait=_WAIT), {}
    async with httpx2.AsyncClient(auth=auth, headers=headers, limits=_LIMITS, timeout=None, trust_env=False) as client:
        answers = await asyncio.gather(*(client.get(plan["url"]) for _ in range(plan["calls"])), return_exceptions=True)
    return sum(isinstance(answer, httpx2.Response) and answer.is_success for answer in answers)


def main(plan: dict[str, Any]) -> None:
    """Make the calls of all processes."""
    began, succeeded = time.perf_counter(), 0
    children = []
    for _ in range(plan["processes"] - 1):
        if (child := os.fork()) == 0:
            os._exit(asyncio.run(_make_calls(plan)))  # the exit code counts up to 255 calls
        children.append(child)
    succeeded += asyncio.run(_make_calls(plan))
    succeeded += sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    print(time.perf_counter() - began, succeeded)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
