"""What is logged of what repeats."""

import pytest

from refresher.common.throttle import Tally


def test_a_flood_is_one_line_a_minute_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, any program could fill the log of the gateway, or a person would not see how much it sends."""
    now = 1000.0
    monkeypatch.setattr("refresher.common.throttle.time.monotonic", lambda: now)
    tally = Tally()
    assert [tally.count("wrong_key") for _ in range(1000)] == [1] + 999 * [0]
    assert tally.count("unknown_grant") == 1
    now += 61
    assert [tally.count("wrong_key") for _ in range(3)] == [1000, 0, 0]
