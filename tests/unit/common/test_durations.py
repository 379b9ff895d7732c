"""The formats of a duration in options and settings."""

import math

import pytest

from refresher.common import durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30s", 30), ("10m", 600), ("8h", 28800), ("1d", 86400), ("0.5h", 1800), (15, 15), (0.0, 0)],
)
def test_a_duration_with_a_unit_and_a_number_of_seconds_are_parsed(written: float | str, seconds: float) -> None:
    """If it failed, a grace period or a wait would have another length than the user gave."""
    assert durations.parse(written) == seconds


@pytest.mark.parametrize("written", ["", "s", "30", "-1s", "1w", "nans", "infs", "1e99d", math.nan, math.inf, -1])
def test_an_invalid_duration_is_refused(written: float | str) -> None:
    """If it failed, a typing error would become a wait of no time, or a wait without end."""
    with pytest.raises(ValueError, match=r"."):
        durations.parse(written)
