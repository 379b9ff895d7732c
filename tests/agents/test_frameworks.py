"""Frameworks of others: each survives three rotations and one revocation, and no call fails."""

import pytest

from refresher.cli.clients.frameworks import FRAMEWORKS
from tests.conftest import need
from tests.support.command import Command
from tests.support.documents import ROOT
from tests.support.frameworks import GROUPS, PROGRAMS, play

GROUP_OF = {key: group for group, keys in GROUPS.items() for key in keys}
PYTHON = [client.key for client in FRAMEWORKS if client.language == "python"]


def test_every_framework_is_tried() -> None:
    """If it failed, the page could show lines that nobody has tried."""
    assert sorted(GROUP_OF) == sorted(PYTHON) == sorted(PROGRAMS)


@pytest.mark.parametrize("key", PYTHON)
def test_a_framework_loses_no_call(refresher: Command, key: str) -> None:
    """If it failed, the lines of the page would lose a call at a rotation or a revocation."""
    python = ROOT / f".venv/agents/{GROUP_OF[key]}/bin/python"
    need(None if python.exists() else f".venv/agents/{GROUP_OF[key]} is missing: tests/run --agents creates it")
    play(refresher, {key: python})
