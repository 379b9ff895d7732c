"""Comparisons of the benchmarks, shown together at the end of the run."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

__all__ = ["Compare", "Note"]


class _Comparison(NamedTuple):
    what: str
    ratio: float
    at_most: float | None
    at_least: float | None

    @property
    def is_kept(self) -> bool:
        return self.ratio <= (self.at_most or self.ratio) and self.ratio >= (self.at_least or self.ratio)

    @property
    def expected(self) -> str:
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


Compare = Callable[..., None]

Note = Callable[..., None]

_COMPARISONS = pytest.StashKey[list[_Comparison]]()
_NOTES = pytest.StashKey[list[str]]()


@pytest.fixture
def compare(pytestconfig: pytest.Config) -> Compare:
    """Note a ratio and its limit; a ratio beyond its limit is reported as a finding and fails no test."""
    noted = pytestconfig.stash.setdefault(_COMPARISONS, [])

    def note(what: str, ratio: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        noted.append(_Comparison(what, ratio, at_most, at_least))

    return note


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Note:
    """Keep lines for the end of the run."""
    return lambda *lines: pytestconfig.stash.setdefault(_NOTES, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the comparisons and the notes."""
    if comparisons := config.stash.get(_COMPARISONS, []):
        terminalreporter.section("comparisons")
    for each in comparisons:
        finding = "" if each.is_kept else "  FINDING"
        terminalreporter.write_line(f"{each.ratio:8.2f} times ({each.expected})  {each.what}{finding}")
    for line in config.stash.get(_NOTES, []):
        terminalreporter.write_line(line)
