"""The process that refreshes for a helper."""

import sys
from pathlib import Path

import pytest

from refresher.common.errors import NotInTime
from refresher.operations.detached_rotation import DetachedRotation


def test_a_process_that_cannot_be_started_is_a_result_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a helper with a refused token would print no header, or wait for a process that does not exist."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with DetachedRotation("linear", ["rotate-detached"], 60) as rotation:
        rotation.start(1)
        assert rotation.is_running
        with pytest.raises(NotInTime, match="linear: cannot start the process that refreshes: no such file"):
            rotation.result(60)
