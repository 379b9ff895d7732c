"""The verification of a new access token at servers that misbehave."""

import gzip
from contextlib import suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import anyio
import pytest

from refresher.common.errors import LoginRefused
from refresher.common.secret import Secret
from refresher.login import verification
from tests.support.answering import Answer, Answering
from tests.support.listener import Listening
from tests.support.peak import MIB, peak
from tests.support.samples import grant

STREAM = (("Content-Type", "text/event-stream"),)


def verify(*answers: Answer) -> str:
    """Verify a token at a server that sends ``answers`` in this order."""
    with Answering() as server:
        server.answers["/mcp"] = list(answers)
        stored = grant(server_url=f"{server.url}/mcp", access_token=Secret("access-token"))
        return anyio.run(partial(verification.verify, stored, ca_file=None)).replace(server.url, "")


def test_a_large_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a server could use up the memory of this machine."""
    monkeypatch.setattr(verification, "_MAX_BODY", 1000)
    text = verify(Answer(200, "x" * 2000, (("Content-Type", "application/json"),)))
    assert text.startswith("could not try the new token at /mcp: ")
    assert text.endswith("the answer is too large")


def test_a_server_of_the_older_transport_is_accepted() -> None:
    """If it failed, login would refuse a working MCP server of before March 2025."""
    with pytest.raises(LoginRefused, match="there is no MCP server at"):
        verify(Answer(405))
    assert verify(Answer(405), Answer(200, "", STREAM)).startswith("could not try the new token at /mcp: ")


VERIFY = """
import sys, anyio
from refresher.common.secret import Secret
from refresher.login.verification import verify
from tests.support.samples import grant
text = anyio.run(verify, grant(server_url=sys.argv[1], access_token=Secret("access-token")), None)
assert text.startswith("could not try the new token at "), text
"""
FETCH = """
import sys, anyio, httpx2
from refresher.login.http_client import fetch
response = anyio.run(fetch, None, httpx2.Request("POST", sys.argv[1], json={}))
assert len(response.content) == 1024 * 1024
"""


@pytest.mark.parametrize(("program", "times"), [(VERIFY, 0), (VERIFY, 1), (VERIFY, 2), (FETCH, 1)])
def test_a_large_answer_needs_little_memory_however_it_is_packed(program: str, times: int) -> None:
    """If it failed, an answer of a few megabytes could use up the memory of this machine."""
    bomb = packed(times)
    assert len(bomb) < 16 * MIB

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if times:
                self.send_header("Content-Encoding", ", ".join(["gzip"] * times))
            self.send_header("Content-Length", str(len(bomb)))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(bomb)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
            return

    with Listening(Handler) as server:
        assert peak(program, f"{server.url}/mcp") < 300 * MIB


@cache
def packed(times: int) -> bytes:
    """Return 15 MiB of JSON, or half a gigabyte of spaces that is compressed ``times`` times."""
    if times == 0:
        return b'{"jsonrpc": "2.0", "id": 0, "result": [%s0]}' % (b"[]," * (5 * MIB))
    return gzip.compress(b" " * (512 * MIB) if times == 1 else packed(times - 1), compresslevel=1)
