"""Nobody refreshes: what ``status`` says, and with which exit code."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from refresher.grants.record import Failure, Grant
from refresher.storage import records
from tests.support.cli import GRANT
from tests.support.command import Command, wait_until
from tests.support.daemon import stopped

Daemon = Callable[..., subprocess.Popen[str]]

WORDS = "overdue: is 'refresher run' or cron running?"
FRESH = GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600}


def says_overdue(refresher: Command) -> bool:
    """Return whether status says that nobody refreshes, on each of its pages alike."""
    (grant,) = json.loads(refresher("status", "--json").stdout)["grants"]
    shown: bool = WORDS in refresher("status").stdout
    assert bool(grant["overdue"]) is shown
    assert refresher("status").code == 0, "the exit code changes without the option"
    assert refresher("status", "--exit-code").code == int(shown)
    return shown


def passed(refresher: Command, seconds: float) -> None:
    """Move the last run so many seconds into the past."""
    at = time.time() - seconds
    os.utime(refresher.state / "last-run", (at, at))


@pytest.mark.parametrize(("arguments", "limit"), [((), None), (("--horizon", "10m"), 1200)])
def test_after_a_run_once_status_knows_when_the_next_one_should_have_come(
    refresher: Command, arguments: tuple[str, ...], limit: int | None
) -> None:
    """If it failed, a crontab that does not work any more would be noticed by agents without tokens."""
    refresher.import_grant("linear", FRESH)
    assert not says_overdue(refresher), "a new grant is overdue before anything is due"
    assert refresher("run-once", *arguments).code == 0
    for seconds in (0, 1100, 1300, 86400):
        passed(refresher, seconds)
        assert says_overdue(refresher) is (limit is not None and seconds > limit), seconds


def test_after_a_run_that_ended_each_grant_is_overdue(refresher: Command, daemon: Daemon) -> None:
    """If it failed, status would show grants in green that nobody refreshes any more."""
    refresher.import_grant("linear", FRESH)
    process = daemon()
    wait_until((refresher.state / "last-run").exists, "the service notes that it runs")
    stopped(refresher, process)
    passed(refresher, 100)
    assert not says_overdue(refresher)
    passed(refresher, 130)
    assert says_overdue(refresher)
    assert refresher("run-once").code == 0
    assert not says_overdue(refresher), "a run by hand is not noticed"


def test_without_any_run_a_grant_is_overdue_when_its_token_has_expired(refresher: Command) -> None:
    """If it failed, a person who logs in and starts nothing would never learn why agents fail."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 1})
    wait_until(lambda: WORDS in refresher("status").stdout, "the token has expired")
    assert says_overdue(refresher)


@pytest.mark.parametrize("content", [b"", b"soon\n", b"-1\n", b"9" * 100])
def test_a_damaged_note_is_no_note(refresher: Command, content: bytes) -> None:
    """If it failed, a damaged file would stop status, or raise a false alarm."""
    refresher.import_grant("linear", FRESH)
    (refresher.state / "last-run").write_bytes(content)
    passed(refresher, 86400)
    assert not says_overdue(refresher)
    assert refresher("run-once", "--horizon", "1m").code == 0
    passed(refresher, 200)
    assert says_overdue(refresher), "it is not repaired"


def change(refresher: Command, **changes: Any) -> None:
    """Change the record of linear."""
    stored = records.load(refresher.directories, "linear")
    assert isinstance(stored.record, Grant)
    records.write(refresher.directories, "linear", stored, msgspec.structs.replace(stored.record, **changes))


def test_the_exit_code_of_status_is_that_of_the_most_serious_grant(refresher: Command) -> None:
    """If it failed, an alarm would miss a grant that needs a person, or go off for a healthy one."""
    assert refresher("status", "--exit-code").code == 0
    refresher.import_grant("linear", FRESH)
    refresher.import_grant("other", FRESH | {"refresh_token": "another-refresh-token"})
    assert refresher("status", "--exit-code").code == 0
    day = 86400.0
    for left, code in ((8 * day, 0), (6 * day, 1)):
        change(refresher, login_ends_at=time.time() + left)
        assert refresher("status", "--exit-code").code == code
    fields: dict[str, Any] = {"code": "invalid_grant", "description": "it is over", "at": time.time(), "retry_at": None}
    change(refresher, login_ends_at=None, failure=Failure(outcome="transient", **fields))
    assert refresher("status", "--exit-code").code == 1
    assert refresher("status", "--exit-code", "nobody").code == 2
    other = refresher.state / "grants/other.json"
    other.chmod(0o644)
    assert (refresher("status", "--exit-code").code, refresher("status").code) == (2, 0)
    change(refresher, failure=Failure(outcome="reauthorization_required", **fields), dead=True)
    assert refresher("status", "--exit-code").code == 3
