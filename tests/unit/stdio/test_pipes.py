"""The standard streams of ``refresher stdio``."""

import os

import anyio
import pytest

from refresher.stdio.messages import CUT, EDGE
from refresher.stdio.pipes import Input, Output

pytestmark = pytest.mark.asyncio


async def test_of_a_line_that_is_too_long_only_the_ends_come() -> None:
    """If it failed, the rest of a long line would count as a message, or fill the memory."""
    reading, writing = os.pipe()
    lines = Input(reading, 2 * EDGE)
    long = b"1" * EDGE + b"x" * 30_000
    os.write(writing, b"1" * 2 * EDGE + b"\n" + long)
    os.write(writing, b"9" * EDGE + b"\n\nlast")
    os.close(writing)
    cut = b"1" * EDGE + CUT + b"9" * EDGE
    assert [line async for line in lines] == [b"1" * 2 * EDGE, cut, b"", b"last"]
    os.close(reading)


async def test_nobody_reads_any_more() -> None:
    """If it failed, the process would stay after its client has closed the pipe."""
    reading, writing = os.pipe()
    output = Output(writing)
    await output.send(b"one")
    assert os.read(reading, 10) == b"one\n"
    os.close(reading)
    await output.send(b"two")
    assert output.closed.is_set()
    os.close(writing)


async def test_a_sender_that_is_cancelled_does_not_cut_its_line() -> None:
    """If it failed, a request that ends while its client is slow would break the lines after it."""
    reading, writing = os.pipe()
    output = Output(writing)
    long = b"x" * 200_000
    with anyio.move_on_after(0.01):
        await output.send(long)
    received = b""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(output.send, b"next")
        while not received.endswith(b"next\n"):
            received += await anyio.to_thread.run_sync(os.read, reading, 65536)
    assert received == long + b"\nnext\n"
    for descriptor in (reading, writing):
        os.close(descriptor)
