"""Durations as people write them."""

import math

import pytest

from refresher.common import durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30s", 30), ("10m", 600), ("8h", 28800), ("1d", 86400), ("0.5h", 1800), (15, 15), (0.0, 0)],
)
def test_what_people_write_is_understood(written: float | str, seconds: float) -> None:
    """If it failed, a grace or a wait would be another than was asked for."""
    assert durations.parse(written) == seconds


@pytest.mark.parametrize("written", ["", "s", "30", "-1s", "1w", "nans", "infs", "1e99d", math.nan, math.inf, -1])
def test_what_is_no_duration_is_refused(written: float | str) -> None:
    """If it failed, a typing mistake would become a wait of nothing, or of for ever."""
    with pytest.raises(ValueError, match=r"."):
        durations.parse(written)
