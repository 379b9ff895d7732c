"""The gateway in a soak: chaos around it for a long time, and 1 GB through it in both directions at once."""

import asyncio
import logging
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from tests.faults.agents import gateway as chaos
from tests.support.gateway import gateway
from tests.support.published import Published

__all__ = ["run"]

_SIZE: Final = 1 << 30
_PIECE: Final = bytes(1 << 18)


def run(seed: int, seconds: float, ending: threading.Event) -> list[str]:
    """Cause faults for ``seconds``, or until ``ending``; print figures, and return the violations."""
    logging.getLogger("refresher.gateway").setLevel(logging.CRITICAL)  # each fault is a line
    violations: list[str] = []
    ends, rounds, whole, grown = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < ends and not ending.is_set():
        with tempfile.TemporaryDirectory(prefix="gateway-") as root:
            found, answers = asyncio.run(chaos.cause(Path(root, "chaos"), f"{seed}/{rounds}"))
            grown = max(grown, 0 if rounds else asyncio.run(_memory_of_1_gb(Path(root, "echo"))))
        violations += [f"round {seed}/{rounds}: {each}" for each in found]
        rounds, whole = rounds + 1, whole + answers
    violations += [f"1 GB took {grown} MiB of memory"] * (grown > 64)
    sys.stderr.writelines(f"\nVIOLATION of the gateway: {violation}\n" for violation in violations)
    sys.stdout.write(f"gateway chaos   {rounds} rounds, {whole} whole answers, {len(violations)} problems\n")
    return violations


async def _memory_of_1_gb(root: Path) -> int:
    """Return by how many MiB the memory of agent, gateway and server grows."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _SIZE)
        while data := await reader.read(len(_PIECE)):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def send(writer: asyncio.StreamWriter) -> None:
        for _ in range(_SIZE // len(_PIECE)):
            writer.write(_PIECE)
            await writer.drain()

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    published = Published(root, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    published.put()
    async with server, gateway(published) as agent:
        reader, writer = await agent.open(agent.head("/linear/x", f"Content-Length: {_SIZE}", method="PUT"))
        before, most, left = pages(), 0, _SIZE
        sending = asyncio.create_task(send(writer))
        await reader.readuntil(b"\r\n\r\n")
        while left:
            left -= len(await reader.read(len(_PIECE)))
            most = max(most, pages())
        await sending
        writer.close()
    return (most - before) * 4096 >> 20
