"""The counterpart of rotations: token requests with httpx and nothing else.

    python -m tests.bench.bare_posts

Reads a line of JSON: for each request its endpoint, its client, and when it is to be sent (seconds from now). Sends them,
64 at most at once, and prints the seconds that this took, and the wall clock at the beginning.
"""

import asyncio
import json
import sys
import time

import httpx

__all__: list[str] = []

_AT_ONCE = 64


async def main(requests: list[tuple[str, str, float]]) -> None:
    limits = httpx.Limits(max_connections=_AT_ONCE)
    turns = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60) as client:
        began, wall = time.perf_counter(), time.time()

        async def send(endpoint: str, client_id: str, at: float) -> None:
            if (wait := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            form = {"grant_type": "refresh_token", "refresh_token": "a", "client_id": client_id}
            async with turns:
                (await client.post(endpoint, data=form)).raise_for_status()

        await asyncio.gather(*(send(*request) for request in requests))
    print(time.perf_counter() - began, wall)


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
