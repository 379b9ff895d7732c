"""What several modules of system tests begin with."""

from collections.abc import Iterator

import pytest

from tests.support.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """An MCP server for one test alone, that knows the first token."""
    with Stage(json_response=True) as made:
        made.play(tokens=["access-token-1"])
        yield made
