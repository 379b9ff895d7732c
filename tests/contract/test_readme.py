"""The README: each command and snippet in it works, and its claims about the repository are true."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.documents import DOCUMENTS, ROOT, block, blocks
from tests.support.snippets import GRANT, accepts, published, python

README = DOCUMENTS["README.md"]


def test_the_readme_has_at_most_150_lines() -> None:
    """If it failed, the README would be too long for a reader with three minutes."""
    assert len(README.splitlines()) <= 150


def _daemons(home: Path) -> list[int]:
    """Return the processes of ``refresher run`` that live in ``home``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            ours = f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and b"run" in words and b"flock" not in words:
            found.append(int(process.name))
    return found


def test_the_line_for_the_profile_starts_one_daemon_for_any_number_of_logins(refresher: Command) -> None:
    """If it failed, no daemon would run after a login to the machine, or one more would start with each login."""
    line = block("README.md", "profile")
    here = line.replace("/path/to/.venv/bin/", f"{Path(sys.executable).parent}/")
    assert here != line
    (refresher.home / ".profile").write_text(here)
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp"})
    log = refresher.state / "log"
    try:
        for _ in range(3):
            done = subprocess.run(
                ["bash", "--login", "-c", "true"], env=refresher.environment, capture_output=True, check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
            wait_until(lambda: log.exists() and "watching 1 grant" in log.read_text(), "it watches")
        assert log.read_text().count("watching") == 1
        assert len(_daemons(refresher.home)) == 1
    finally:
        for pid in _daemons(refresher.home):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _daemons(refresher.home), "it has stopped")
    assert log.read_text().endswith("refresher: stopped\n")


def test_the_line_for_the_crontab_starts_a_daemon(refresher: Command) -> None:
    """If it failed, the crontab line that users copy would start no daemon."""
    (line,) = re.findall(r"^@reboot  (.*)$", README, re.MULTILINE)
    refresher.state.mkdir(parents=True)
    command = line.replace("/path/to/.venv/bin/", f"{Path(sys.executable).parent}/")
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], env=refresher.environment)
    log = refresher.state / "log"
    wait_until(lambda: log.exists() and "watching" in log.read_text(), "it watches")
    process.terminate()
    assert process.wait(90) == 0


def test_the_agents_two_lines_work(refresher: Command) -> None:
    """If it failed, the first code that the author of an agent copies would not run."""
    call = "import asyncio, os\nprint(asyncio.run(client.get(os.environ['URL'])).status_code)"
    with API(accepts) as api:
        done = python(f"{block('README.md', 'python')}\n{call}", published(refresher, api))
    assert done.stdout == "200\n", done.stderr


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    """If it failed, the tests that users run would not be those that run in CI."""
    _, tests = blocks("README.md", "sh")
    assert tests.strip() == "tests/run"
    assert os.access(ROOT / "tests/run", os.X_OK)
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ['exec "$(dirname "$0")/../tests/run"']


def test_the_top_level_contains_only_known_names() -> None:
    """If it failed, files would appear in the top directory of the repository without a decision."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.partition("/")[0] for name in tracked if not name.startswith(".")}
    assert top <= {"pyproject.toml", "refresher", "shim", "deploy", "tests", "README.md"}
