"""A gateway while servers, tokens and agents fail at random; what it promises is checked.

- A call whose answer is whole was executed once, and no call is executed twice.
- A call whose answer the server sent as a whole reaches its agent as a whole; each other one ends in an error, or breaks off.
- The events of a stream arrive in their order, and the stream has an end only if the server has sent it.
"""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.gateway import Agent, gateway
from tests.support.published import Published

__all__ = ["CALLS", "cause"]

_AGENTS: Final = 100
CALLS: Final = 4
_BODY: Final = b"".join(b"%06d" % number for number in range(10_000))
_END: Final = b"0\r\n\r\n"


class _Server:
    """Fails at random; it accepts the tokens from ``oldest`` on."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.oldest = 1
        self.open = 0
        self.executed: Counter[str] = Counter()
        self.whole: set[str] = set()
        """The requests whose answers have an end."""
        self.keys_seen = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.keys_seen += "RGK-" in head
        if "Content-Length: " in head:
            await reader.readexactly(int(head.partition("Content-Length: ")[2].partition("\r")[0]))
        if int(head.partition("access-token-")[2].partition("\r")[0]) < self.oldest:
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 3\r\n\r\nno!")
            return True
        which = head.split()[1]
        self.executed[which] += 1
        fate = self._rng.random()
        if fate < 0.1:
            writer.transport.abort()
            return False
        events = "text/event-stream" in head
        chunked = events or self._rng.random() < 0.5
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(_BODY)}"
        kind = "Content-Type: text/event-stream\r\n" if events else ""
        writer.write(f"HTTP/1.1 200 OK\r\n{kind}{framing}\r\n\r\n".encode())
        parts = [b"data: %d\n\n" % number for number in range(20)] if events else _parts()
        is_whole = fate >= 0.25
        for part in parts if is_whole else parts[: self._rng.randrange(len(parts))]:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
            await asyncio.sleep(0.01 * events)
        if is_whole:
            self.whole.add(which)
            writer.write(_END if chunked else b"")
        await writer.drain()
        return is_whole


def _parts() -> list[bytes]:
    return [_BODY[at : at + 9000] for at in range(0, len(_BODY), 9000)]


def _unchunked(rest: bytes) -> tuple[bytes, bool]:
    """Return the body so far, and whether its end has come."""
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body, True
        body, rest = body + rest[:length], rest[length + 2 :]
    return body, False


async def _call(agent: Agent, rng: random.Random, target: str, server: _Server) -> list[str]:
    """Make a call, and return what is wrong with its end."""
    if rng.random() < 0.1:
        _, writer = await agent.open(agent.head(f"/linear{target}", "Content-Length: 100", method="POST") + b"part")
        writer.transport.abort()
        return [f"{target}: executed without its body"] if server.executed[target] else []
    body, is_whole, status = b"", False, 0
    with suppress(ConnectionError):
        found = await agent.ask(f"/{agent.key}/linear{target}", method="POST", body=bytes(rng.choice((0, 100, 70_000))))
        status = found.status
        body, is_whole = (
            _unchunked(found.body) if "transfer-encoding" in found.names else (found.body, found.body == _BODY)
        )
    violations = [f"{target}: a token in an answer"] * (b"access-token" in body)
    if status not in (0, 200):
        wrong = status not in (502, 503) or b'"error"' not in body or (status == 503 and server.executed[target])
        return violations + [f"{target}: ended in {status} {body!r}"] * wrong
    if not _BODY.startswith(body) or (is_whole and body != _BODY):
        violations.append(f"{target}: another body, of {len(body)} bytes")
    if is_whole != (target in server.whole):
        violations.append(f"{target}: whole for the {'agent' if is_whole else 'server'} alone")
    if server.executed[target] != 1:
        violations.append(f"{target}: status {status}, and executed {server.executed[target]} times")
    return violations


async def _listen(agent: Agent, server: _Server, over: asyncio.Event) -> list[str]:
    """Read one stream of events after the other, and return what is wrong with one."""
    for number in itertools.count():
        if over.is_set():
            break
        target = f"/events/{number}"
        found = await agent.ask(f"/linear{target}", "Accept: text/event-stream")
        if found.status != 200:
            continue
        events, is_whole = _unchunked(found.body)
        texts = events.decode().split("\n\n")[:-1]
        if texts != [f"data: {each}" for each in range(len(texts))] or is_whole != (target in server.whole):
            return [f"{target}: {texts}, {'with' if is_whole else 'without'} an end"]
    return []


async def cause(root: Path, seed: str) -> tuple[list[str], int]:
    """Have 100 agents call while everything fails; return the violations, and how many answers were whole."""
    rng = random.Random(seed)
    serve = _Server(rng)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    published = Published(root, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    published.put(1)

    async def rotate() -> None:
        for generation in itertools.count(2):
            await asyncio.sleep(0.05)
            if rng.random() < 0.5:
                serve.oldest = generation  # revoked: the published token is refused until the next
                await asyncio.sleep(0.05)
            published.put(generation)

    async def work(agent: Agent, number: int) -> list[str]:
        calls = [await _call(agent, rng, f"/{number}/{call}", serve) for call in range(CALLS)]
        return list(itertools.chain(*calls))

    async with gateway(published) as agent, asyncio.timeout(90):
        rotating = asyncio.create_task(rotate())
        over = asyncio.Event()
        listening = asyncio.create_task(_listen(agent, serve, over))
        found = await asyncio.gather(*(work(agent, number) for number in range(_AGENTS)))
        violations = list(itertools.chain(*found))
        over.set()
        violations += await listening
        rotating.cancel()
        await asyncio.wait((rotating,))
        while agent.forwarder.streams:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(60):
        while serve.open:
            await asyncio.sleep(0.01)
    server.close()
    left = [task for task in asyncio.all_tasks() - {asyncio.current_task()} if not task.done()]
    violations += [f"a task is left: {task}" for task in left]
    violations += ["a key reached the server"] * bool(serve.keys_seen)
    violations += [
        f"{which}: executed twice" for which, count in serve.executed.items() if count > 1 and "events" not in which
    ]
    return violations, len(serve.whole)
