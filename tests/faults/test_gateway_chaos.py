"""The gateway while servers, tokens and agents fail at random."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.agents import gateway


@pytest.mark.parametrize("seed", ["1", "2"])
def test_agents_get_whole_answers_or_words_whatever_fails(tmp_path: Path, seed: str) -> None:
    """If it failed, one bad server, token or agent would cost other agents their calls, or leave connections behind."""
    violations, whole = asyncio.run(gateway.cause(tmp_path, seed))
    assert violations == []
    assert whole > 0
