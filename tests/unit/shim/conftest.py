"""What the tests of ``shim`` share."""

from pathlib import Path

import pytest

from tests.support.published import Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """The directories of a refresher."""
    return Published(tmp_path)
