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

from refresher.grants.encoding import encode
from refresher.grants.record import Failure
from tests.support.cli import GRANT, one_line
from tests.support.command import Command, without_times
from tests.support.terminal import at_a_terminal, read_whole


def test_an_option_overrides_the_environment_and_the_environment_overrides_the_file(refresher: Command) -> None:
    """If it failed, a run would use another directory than the documentation says."""
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
    """If it failed, an option after the command would be an error, or the wrong directory would be used."""
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
    """If it failed, a person with an old terminal would get an empty table or a traceback."""
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
    """If it failed, lines in the log of cron would have no time, or lines in the journal would have two."""
    timed = refresher("status", "nobody", environment={"TZ": "Asia/Kolkata"}).stderr
    written, offset, _ = re.fullmatch(r"([-\dT:]{19})(\+05:30) (refresher: .*\n)", timed).groups()  # type: ignore[union-attr]
    assert abs(datetime.fromisoformat(written + offset).timestamp() - time.time()) < 60
    process, master = at_a_terminal(refresher, "status", "nobody")
    assert read_whole(master).startswith("refresher: there is no grant")
    assert process.wait(90) == 2
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


@pytest.mark.parametrize(
    "text", ["surprise = 1", "state_dir = 5", 'ca_file = ""', "not TOML", 'log_format = "xml"', "\xff"]
)
def test_a_wrong_configuration_file_is_one_line(refresher: Command, text: str) -> None:
    """If it failed, a typing error in the configuration would be ignored, or end in a traceback."""
    path = refresher.home / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    assert "config.toml" in one_line(refresher("--config", str(path), "status")) or "log_format" in text


def test_a_configuration_file_with_a_byte_order_mark_is_read(refresher: Command) -> None:
    """If it failed, a person whose editor writes the mark would read that a correct file is not TOML."""
    path = refresher.home / "config.toml"
    path.write_text('state_dir = "by-file"\n', "utf-8-sig")
    assert "by-file" in one_line(refresher("--config", str(path), "status"))


@pytest.mark.parametrize(
    "option", ["--state-dir", "--tokens-dir", "--demands-dir", "--spill-dir", "--ca-file", "--config"]
)
def test_an_empty_path_is_refused(refresher: Command, option: str) -> None:
    """If it failed, a script whose variable is not set would work on the default directory."""
    assert f"{option} is empty" in one_line(refresher(option, "", "status"))


def test_the_environment_can_ask_for_more_log_lines_with_a_number(refresher: Command) -> None:
    """If it failed, a wrong value would end in the words of a library."""
    refresher.import_grant("linear", GRANT)
    assert "it must be a number" in one_line(refresher("run-once", environment={"REFRESHER_VERBOSE": "yes"}))
    assert "refresher: linear: " in refresher("run-once", "--force", environment={"REFRESHER_VERBOSE": "1"}).stderr


def test_logs_can_be_json_and_a_run_without_errors_logs_nothing(refresher: Command) -> None:
    """If it failed, log collectors would get lines that are not JSON, or cron would send a mail for each run."""
    refresher.import_grant("healthy", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("run-once").stderr == ""
    refresher("remove", "healthy")
    refresher.import_grant("linear", GRANT)
    failed = refresher("run-once")
    assert without_times(failed.stderr).startswith("refresher: linear: transient: ")
    assert failed.stderr.count("\n") == 1, "an error is not one line on stderr"
    done = refresher("-v", "--log-format", "json", "run-once", "--force")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {("at", "level", "message")}
    assert any("linear" in line["message"] for line in lines)
    for _ in range(3):
        refresher("run-once", "--force")
    # The fifth backoff lasts for more than a minute: it is not over before the next run even on a busy machine.
    assert refresher("run-once").stderr == "", "a run during a backoff logs a line"
