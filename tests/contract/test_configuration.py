"""Settings from options, environment and file; the log lines and their encoding."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime

import msgspec
import pytest

from refresher.grants.record import Failure, encode
from tests.support.cli import GRANT, one_line
from tests.support.command import Command, without_times
from tests.support.terminal import at_a_terminal, read_whole


def test_option_over_environment_over_file(refresher: Command) -> None:
    """If it failed, nobody could tell which directory a run works on."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('state_dir = "by-file"\nlog_format = "json"\nverbose = 1\n')
    assert str(config.parent / "by-file") in refresher("status").stderr
    environment = {"REFRESHER_STATE_DIR": str(refresher.home / "by-environment")}
    assert "by-environment" in refresher("status", environment=environment).stderr
    assert "by-option" in refresher("--state-dir", "by-option", "status", environment=environment).stderr
    assert str(refresher.home / "xdg/refresher") in refresher(
        "--config", os.devnull, "status", environment={"XDG_STATE_HOME": str(refresher.home / "xdg")}
    ).stderr  # fmt: skip


def test_global_options_are_accepted_after_the_command_too(refresher: Command) -> None:
    """If it failed, each mistake about the place of an option would be an error, or the wrong directory be used."""
    assert "by-after" in refresher("status", "--state-dir", "by-after").stderr
    both = ("--state-dir", "by-before", "status", "--state-dir", "by-after")
    assert "by-after" in refresher(*both, environment={"REFRESHER_STATE_DIR": "by-environment"}).stderr
    assert "by-before" in refresher("--state-dir", "by-before", "status", "--ca-file", "x").stderr
    refresher.import_grant("linear", GRANT)
    for arguments in (("-v", "run-once"), ("run-once", "-v", "linear")):
        (line, *_) = refresher(*arguments, "--log-format", "json", "--force").stderr.splitlines()
        assert json.loads(line)["message"].startswith("linear: ")
    words = f"refresher status --state-dir {refresher.state} l"
    completing = {"_REFRESHER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
    assert refresher(environment=completing).stdout == "plain,linear\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_of_another_encoding_gets_replaced_characters(refresher: Command, encoding: str) -> None:
    """If it failed, a person with an old terminal would see an empty table, or a traceback."""
    grant = refresher.bring("linear", GRANT)
    failure = Failure(outcome="transient", code="away", description="Zürich: нет", at=time.time(), retry_at=time.time())
    data, _ = encode(msgspec.structs.replace(grant, failure=failure, failures=1))
    (refresher.state / "grants/linear.json").write_bytes(data)
    shown = subprocess.run(
        [sys.executable, "-m", "refresher", "status"],
        env=refresher.environment | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert ("Zürich: ???" if encoding == "latin-1" else "Z?rich: ???") in shown
    logged = refresher("run-once", "пусто", environment={"PYTHONIOENCODING": encoding})
    assert "there is no grant named '?????'" in one_line(logged)


def test_text_logs_have_a_time_except_at_a_terminal_and_in_the_journal(refresher: Command) -> None:
    """If it failed, nobody could tell when a line in cron's log was written, or the journal would show each time twice."""
    timed = refresher("status", "nobody", environment={"TZ": "Asia/Kolkata"}).stderr
    written, offset, _ = re.fullmatch(r"([-\dT:]{19})(\+05:30) (refresher: .*\n)", timed).groups()  # type: ignore[union-attr]
    assert abs(datetime.fromisoformat(written + offset).timestamp() - time.time()) < 60
    process, master = at_a_terminal(refresher, "status", "nobody")
    assert read_whole(master).startswith("refresher: there is no grant")
    assert process.wait(30) == 2
    log = refresher.home / "log"
    log.touch()
    status = log.stat()
    for journal, prefix in ((f"{status.st_dev}:{status.st_ino}", "refresher: "), ("1:2", "2")):
        with log.open("w") as stderr:
            subprocess.run(
                [sys.executable, "-m", "refresher", "status", "nobody"],
                env=refresher.environment | {"JOURNAL_STREAM": journal},
                stderr=stderr,
                check=False,
            )
        assert log.read_text().startswith(prefix)


@pytest.mark.parametrize("text", ["surprise = 1", "state_dir = 5", "not TOML", 'log_format = "xml"', "\xff"])
def test_a_wrong_configuration_file_is_one_line(refresher: Command, text: str) -> None:
    """If it failed, a typing error in the configuration would be ignored, or end in a traceback."""
    path = refresher.home / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    assert "config.toml" in one_line(refresher("--config", str(path), "status")) or "log_format" in text


def test_logs_can_be_json_and_say_nothing_by_default(refresher: Command) -> None:
    """If it failed, log collectors would get unreadable lines, or cron would mail noise."""
    refresher.import_grant("healthy", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("run-once").stderr == ""
    refresher("remove", "healthy")
    refresher.import_grant("linear", GRANT)
    failed = refresher("run-once")
    assert without_times(failed.stderr).startswith("refresher: linear: transient: ")
    assert failed.stderr.count("\n") == 1, "what goes wrong is said where cron hears it, in one line"
    assert refresher("run-once").stderr == "", "what only waits is no news"
    done = refresher("-v", "--log-format", "json", "run-once", "--force")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {("at", "level", "message")}
    assert any("linear" in line["message"] for line in lines)
