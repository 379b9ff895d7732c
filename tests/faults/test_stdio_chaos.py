"""``refresher stdio`` while its server is killed at random."""

import threading

import pytest

from tests.faults.agents import bridge


@pytest.mark.parametrize("seed", ["1"])
def test_each_request_has_one_true_answer_while_the_server_is_killed(seed: str) -> None:
    """If it failed, a client would wait for ever, or a write would be executed twice, or said not to be."""
    result = bridge.run(seed, 1.5, threading.Event())
    print(result)
    assert not result.violations
    assert result.kills > 3
    assert result.outcomes["write result"] > 10
    assert result.outcomes["write error"] > 0
