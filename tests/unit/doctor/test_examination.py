"""The whole examination by a user who may not look."""

import os
import tempfile
from pathlib import Path

from refresher import config
from refresher.doctor import examination
from tests.conftest import need
from tests.support.fake_state import directories, put
from tests.support.parts import no_mounts
from tests.support.samples import grant


def test_another_user_learns_whose_directories_they_are() -> None:
    """If it failed, an agent that runs the doctor would get a traceback, or wrong findings about each grant."""
    need(no_mounts())  # only root can act as another user
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        made = directories(Path(top))
        put(made.record("linear"), grant())
        made.state.chmod(0o711)
        settings = config.resolve({"state_dir": str(made.state), "spill_dir": str(made.spill)}, None)
        groups = os.getgroups()
        os.setgroups([])
        os.seteuid(12345)
        try:
            parts = examination.examine(settings, None, offline=True)
        finally:
            os.seteuid(0)
            os.setgroups(groups)
    findings = [finding for finding in examination.findings_of(parts) if finding.code != "directory_risk"]
    assert [finding.code for finding in findings] == ["directory_refused"]
    assert "this is user 12345" in findings[0].what
    assert [part.line for part in parts[1:4]] == ["not checked: the directories come first"] * 3
