"""The standard streams of a bridge: lines in, messages out, each by a thread that nothing has to wait for."""

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator
from typing import Final

from refresher.stdio.messages import CUT, EDGE

__all__ = ["Input", "Output", "take_standard_streams"]

_CHUNK: Final = 64 * 1024
_LINES_AHEAD: Final = 16


def take_standard_streams() -> tuple[int, int]:
    """Return descriptors of stdin and stdout. What else the process prints goes to stderr."""
    stdin, stdout = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return stdin, stdout


class Input:
    """The lines of a descriptor, until its end. A reader that is slow makes the writer wait.

    Of a line that is longer than ``longest``, only the start and the end come, with ``CUT`` between them.
    """

    def __init__(self, descriptor: int, longest: int) -> None:
        self._descriptor = descriptor
        self._longest = longest
        self._ahead = threading.Semaphore(_LINES_AHEAD)
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        # A daemon thread: a read from a terminal cannot be ended.
        threading.Thread(target=self._read, daemon=True, name="stdin").start()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (line := await self._lines.get()) is not None:
            self._ahead.release()
            yield line

    def _read(self) -> None:
        start, rest = b"", bytearray()
        try:
            while chunk := self._chunk():
                for number, part in enumerate(chunk.split(b"\n")):
                    if number:
                        self._put(start + rest)
                        start, rest = b"", bytearray()
                    rest += part
                    if start or len(rest) > self._longest:
                        start, rest = start or bytes(rest[:EDGE]) + CUT, rest[-EDGE:]
            if rest:
                self._put(start + rest)
            self._loop.call_soon_threadsafe(self._lines.put_nowait, None)
        except RuntimeError:
            return  # the loop has ended

    def _chunk(self) -> bytes:
        try:
            return os.read(self._descriptor, _CHUNK)
        except OSError:
            return b""

    def _put(self, line: bytes) -> None:
        self._ahead.acquire()
        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)


class Output:
    """Writes lines to a descriptor, one at a time; a reader that is slow makes each sender wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._turn = asyncio.Lock()
        self._lines: queue.SimpleQueue[tuple[bytes, asyncio.Future[bool]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        """Set when nobody reads any more."""
        # A daemon thread: a write to a client that has stopped reading cannot be ended.
        threading.Thread(target=self._write, daemon=True, name="stdout").start()

    async def send(self, line: bytes) -> None:
        """Write a line; return when it is written, or cannot be."""
        async with self._turn:
            done: asyncio.Future[bool] = self._loop.create_future()
            self._lines.put((line + b"\n", done))
            # A sender that is cancelled does not cut its line: the next sender's line follows it.
            if not await asyncio.shield(done):
                self.closed.set()

    def _write(self) -> None:
        while True:
            rest, done = self._lines.get()
            written = True
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                written = False
            try:
                self._loop.call_soon_threadsafe(done.set_result, written)
            except RuntimeError:
                return  # the loop has ended
