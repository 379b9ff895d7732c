"""What deploy/ ships beside its units: that it fits the program, and that tests run all that its README has people type."""

import plistlib
import re
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from refresher.common.durations import parse
from tests.support.command import Command, wait_until
from tests.support.deployed import DEPLOY, README, ROOT, settings

TYPED = {
    "Install": 2,
    "cron": 2,
    "cron, for a machine": 1,
    "systemd (your own user)": 2,
    "timer": 1,
    "systemd (a machine for several users)": 1,
    "Grants and agents of a machine": 3,
}
"""How many blocks of each section are typed in by test_cron.py, test_systemd.py and test_systemd_user.py."""


def test_all_that_people_are_told_to_type_is_typed_by_a_test() -> None:
    """If it failed, a command would stand in the README that nobody has ever run."""
    headings = re.split(r"^#+ (.*)$", README, flags=re.MULTILINE)
    counts = Counter(
        {
            title: len(re.findall(r"^```sh$", text, re.MULTILINE))
            for title, text in zip(headings[1::2], headings[2::2], strict=True)
        }
    )
    assert {title: count for title, count in counts.items() if count} == TYPED


def test_what_the_readme_names_is_there() -> None:
    """If it failed, people would be told to copy what does not exist."""
    named = set(re.findall(r"deploy/[\w./-]*\w", README))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("unit", ["system/refresher.service", "user/refresher.service"])
def test_a_service_manager_waits_longer_than_the_program_takes(unit: str) -> None:
    """If it failed, systemd would kill it in the middle of an exchange."""
    said = settings(unit)
    (command,) = said["ExecStart"]
    grace = parse(command.partition("--grace ")[2])
    assert grace >= 25, "an exchange is given 5 s less, and may take 20 s"
    assert parse(said["TimeoutStopSec"][0]) > grace + 5


@pytest.mark.parametrize("path", ["cron/crontab", "cron/refresher", "systemd/user/refresher-once.service"])
def test_the_next_run_comes_within_the_horizon(path: str) -> None:
    """If it failed, a token could end between two runs."""
    (horizon,) = re.findall(r"run-once --horizon (\d+)", (DEPLOY / path).read_text())
    late = parse(settings("user/refresher-once.timer")["AccuracySec"][0])
    assert float(horizon) > 60 + late


def test_macos_waits_longer_and_starts_what_is_there(refresher: Command) -> None:
    """If it failed, the file for a Mac, which nobody could try, would be wrong in what can be known here."""
    agent = plistlib.loads((DEPLOY / "launchd/local.refresher.plist").read_bytes())
    assert set(agent) == {"ExitTimeOut", "KeepAlive", "Label", "ProgramArguments", "RunAtLoad", "Umask"}
    assert agent["KeepAlive"] is agent["RunAtLoad"] is True
    assert agent["Umask"] == 0o077
    assert f"{agent['Label']}.plist" == "local.refresher.plist"
    command = agent["ProgramArguments"]
    assert agent["ExitTimeOut"] > parse(re.findall(r"--grace (\w+)", command[-1])[0]) + 5
    for made in (".local/bin", "Library/Logs"):
        (refresher.home / made).mkdir(parents=True)
    (refresher.home / ".local/bin/refresher").symlink_to(Path(sys.executable).parent / "refresher")
    log = refresher.home / "Library/Logs/refresher.log"
    process = subprocess.Popen(command, env={"HOME": str(refresher.home), "PATH": "/usr/bin:/bin"})
    wait_until(lambda: log.exists() and "watching" in log.read_text(), "it watches")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert log.read_text().endswith("refresher: stopped\n")


def test_who_takes_a_source_distribution_has_it_all() -> None:
    """If it failed, the files would be missing where there is no checkout."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "deploy" in built["include"]


def test_files_say_nothing_of_this_machine() -> None:
    """If it failed, what ships would only work where it was written."""
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file()]
    assert [text for text in texts if str(ROOT) in text or f"{Path.home()}/" in text] == []
