"""Agents of the group that do random file operations harm no grant."""

import os
import random

import pytest

from tests.conftest import need
from tests.faults.fuzz.fuzz import Fuzz, missing

SECONDS = 5


@pytest.mark.parametrize(
    "shared", [False, True], ids=["demands in the state directory", "demands beside foreign files"]
)
def test_agents_that_do_random_file_operations_harm_no_grant(shared: bool) -> None:
    """If it failed, an agent could have a login revoked, a token lost, or refresher stopped."""
    need(missing())
    seed = os.environ.get("FUZZ_SEED") or str(random.SystemRandom().randrange(1_000_000))
    print(f"FUZZ_SEED={seed} does the same again, as far as the system allows")
    result = Fuzz(seed, shared=shared).run(SECONDS)
    assert not result.violations, f"FUZZ_SEED={seed}: {result.violations}"
    assert result.exchanges > 10
    assert sum(result.operations.values()) > 100
