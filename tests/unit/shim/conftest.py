"""What the tests of ``shim`` share."""

from pathlib import Path

import pytest

from tests.support.published import Published
from tests.unit.shim.flow import Clock


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """The directories of a refresher."""
    return Published(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A fake monotonic clock."""
    return Clock(monkeypatch)
