"""The verification of a new access token at servers that misbehave."""

from functools import partial

import anyio
import pytest

from refresher.common.errors import LoginRefused
from refresher.common.secret import Secret
from refresher.login import verification
from tests.support.answering import Answer, Answering
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
