"""What several modules of contract tests share."""

import pytest

from tests.support.cli import WORKING_LOGIN
from tests.support.command import Command


@pytest.fixture
def logged_in(quick: Command) -> Command:
    """The command, with a working grant ``linear`` for another server."""
    quick.import_grant("linear", WORKING_LOGIN)
    return quick
