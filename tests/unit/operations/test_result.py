"""The result of a run for one grant: what it tells a person to do."""

from typing import Any

import pytest

from refresher.grants.policy import Wait
from refresher.grants.record import Login
from refresher.operations.result import Result
from tests.support.samples import failure, grant

LOGIN = "log in again with 'refresher login linear'"
IMPORT = "import it again with 'refresher import linear --replace --from FILE'"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"login": Login(client="registered")}, LOGIN),
        ({"server_url": "https://mcp.example/mcp"}, f"{LOGIN}, or {IMPORT}"),
        ({"server_url": None}, IMPORT),
    ],
    ids=["from a login", "imported", "imported without an address"],
)
def test_a_dead_grant_names_each_command_that_can_replace_it(changes: dict[str, Any], advice: str) -> None:
    """If it failed, the only advice could be a login that finds no authorization server, or an import without a file."""
    dead = grant(dead=True, failure=failure(outcome="reauthorization_required"), **changes)
    result = Result.from_decision(dead, Wait("reauthorization_required", None))
    assert result.outcome == "reauthorization_required"
    assert result.detail.endswith(f"; {advice}")
