"""Durations as a person reads them."""

import pytest

from refresher.common import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (-119.4, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (7260, "2 h 1 min"),
        (86_400, "24 h"),
        (172_800, "2 d"),
        (176_400, "2 d 1 h"),
        (864_000, "10 d"),
    ],
)
def test_a_duration_has_no_second_unit_that_is_zero(seconds: float, shown: str) -> None:
    """If it failed, messages would show '24 h 0 min', as if somebody had measured the minutes."""
    assert text.span(seconds) == shown
