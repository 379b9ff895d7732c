"""An MCP server for tests that kill it: it notes each call of its tool ``write`` before it answers.

    python -m tests.servers.mcp_killed PORT FILE SEED

It listens on 127.0.0.1, prints a line when it is ready, and exits when its stdin closes. FILE gets a line for each call,
also of earlier processes. SEED decides about the pauses, and which answers are streams.
"""

import asyncio
import json
import os
import random
import sys
from typing import Any


class Server:
    """Forgets its sessions when its process ends."""

    def __init__(self, file: str, seed: str) -> None:
        self._notes = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._random = random.Random(seed)
        self._sessions: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while True:
                method, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                await self._answer(method.partition(" ")[0], headers.get("mcp-session-id"), body, writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def _answer(self, method: str, session: str | None, body: bytes, writer: asyncio.StreamWriter) -> None:
        if method != "POST":
            return await _send(writer, "200 OK" if method == "DELETE" else "405 No")
        message = json.loads(body)
        if message["method"] == "initialize":
            session = f"{os.getpid()}-{len(self._sessions)}"
            self._sessions.add(session)
            result: dict[str, Any] = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}}
        elif session not in self._sessions:
            return await _send(writer, "404 No")
        elif "id" not in message:
            return await _send(writer, "202 Accepted")
        else:
            await self._pause()
            result = {"tools": [{"name": "write"}]}
            if message["method"] == "tools/call":
                os.write(self._notes, f"{message['params']['arguments']['what']}\n".encode())
                result = {"content": []}
            await self._pause()
        answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        more = f"Mcp-Session-Id: {session}\r\n"
        if self._random.random() < 0.5:
            return await _send(writer, "200 OK", f"{more}Content-Type: application/json\r\n", answer)
        writer.write(
            f"HTTP/1.1 200 OK\r\n{more}Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n".encode()
        )
        event = f"data: {answer}\n\n"
        for piece in ("\r\n", f"{len(event):x}\r\n{event}\r\n", "0\r\n\r\n"):
            writer.write(piece.encode())
            await self._pause()
        return None

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.choice((0, self._random.uniform(0, 0.02))))


async def _send(writer: asyncio.StreamWriter, status: str, headers: str = "", body: str = "") -> None:
    writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()


async def main(port: int, file: str, seed: str) -> None:
    """Serve until stdin closes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    async with await asyncio.start_server(Server(file, seed).serve, "127.0.0.1", port):
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
