"""The files of deploy/ fit the program, and tests run every command of deploy/README.md."""

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
    "Hooks": 1,
    "A key for the grants": 2,
}
"""How many blocks of each section test_cron.py, test_systemd.py, test_systemd_user.py and test_notify_hook.py run."""


def test_every_command_of_the_page_is_run_by_a_test() -> None:
    """If it failed, the page could contain a command that no test runs."""
    headings = re.split(r"^#+ (.*)$", README, flags=re.MULTILINE)
    counts = Counter(
        {
            title: len(re.findall(r"^```sh$", text, re.MULTILINE))
            for title, text in zip(headings[1::2], headings[2::2], strict=True)
        }
    )
    assert {title: count for title, count in counts.items() if count} == TYPED


def test_files_that_the_page_names_exist() -> None:
    """If it failed, a user would copy a file that does not exist."""
    named = set(re.findall(r"deploy/[\w./-]*\w", README))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("unit", ["system/refresher.service", "user/refresher.service"])
def test_a_service_manager_waits_longer_than_the_program_takes(unit: str) -> None:
    """If it failed, systemd would kill refresher during a request, and lose a token."""
    unit_settings = settings(unit)
    (command,) = unit_settings["ExecStart"]
    grace = parse(command.partition("--grace ")[2])
    assert grace >= 25, "a request gets 5 s less, and may take 20 s"
    assert parse(unit_settings["TimeoutStopSec"][0]) > grace + 5


def test_the_service_of_a_machine_slows_down_before_its_memory_ends() -> None:
    """If it failed, a fault could take the memory of the machine, or the kernel would kill refresher without a warning."""
    unit = settings("system/refresher.service")
    high, most = (int(unit[key][0].removesuffix("M")) for key in ("MemoryHigh", "MemoryMax"))
    assert 384 < high < most, "test_little_memory.py shows that 384 MiB are enough"


@pytest.mark.parametrize("path", ["cron/crontab", "cron/refresher", "systemd/user/refresher-once.service"])
def test_the_next_run_comes_within_the_horizon(path: str) -> None:
    """If it failed, a token could expire between two runs."""
    (horizon,) = re.findall(r"run-once --horizon (\d+)", (DEPLOY / path).read_text())
    late = parse(settings("user/refresher-once.timer")["AccuracySec"][0])
    assert float(horizon) > 60 + late


def test_the_launchd_agent_starts_the_daemon_and_waits_longer_than_its_grace(refresher: Command) -> None:
    """If it failed, the file for macOS would contain a mistake that can be seen on Linux."""
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
    wait_until(lambda: log.exists() and "watching" in log.read_text(), "the daemon has started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    assert log.read_text().endswith("refresher: stopped\n")


def test_a_source_distribution_contains_deploy() -> None:
    """If it failed, the files would be missing without a checkout."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "deploy" in built["include"]


def test_files_name_no_path_of_this_machine() -> None:
    """If it failed, the files would only work on the machine where they were written."""
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file()]
    assert [text for text in texts if str(ROOT) in text or f"{Path.home()}/" in text] == []
