"""Refresh tokens that end before the access token, and logins that end whatever refresher does."""

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from refresher.common import text
from refresher.grants.record import Grant
from refresher.storage import records
from tests.support.cli import GRANT
from tests.support.command import Command, wait_until, without_times
from tests.support.daemon import heard, stopped
from tests.support.token_server import TokenServer

Daemon = Callable[..., subprocess.Popen[str]]

MEMBERS = ("refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in")
HOUR = 3600.0
DAY = 86400.0
WARNING = "the server ends this login in"


def test_a_refresh_token_that_ends_before_its_access_token_is_rotated_in_time(
    refresher: Command, daemon: Daemon
) -> None:
    """If it failed, a login whose refresh token lasts less than its access token would be lost before its first rotation."""
    began = time.monotonic()

    def refresh_life(client: str) -> float:
        # The session of the last client ends twenty seconds after its login; the others start anew.
        return max(began + 20 - time.monotonic(), 0.0) if client == "session" else 8.0

    def member(client: str) -> str:
        return client if client in MEMBERS else "refresh_expires_in"

    with TokenServer(
        lambda client: 30.0 if client == "session" else HOUR,
        grace=0.0,
        refresh_life=refresh_life,
        announced=member,
        patience=lambda client: 0.0 if client == "session" else HOUR,
    ) as server:
        for number, client in enumerate((*MEMBERS, "session")):
            refresher.bring(f"g{number}", server.grant(client))
        process = daemon()
        wait_until(lambda: refresher.grant("g3").login_ends_at is not None, "the end of the session is recognized")
        wait_until(lambda: all(len(server.asked[each]) >= 5 for each in MEMBERS), "five rotations each")
        wait_until(lambda: refresher.grant("g3").dead, "the session has ended")
        grants = json.loads(refresher("status", "--json").stdout)["grants"]
        log = stopped(refresher, process)
    *sliding, session = grants
    assert [(grant["state"], grant["login_ends_at"]) for grant in sliding] == [("active", None)] * 3
    assert all(grant["generation"] >= 5 for grant in sliding)
    assert all(0 < grant["refresh_token_expires_at"] - grant["issued_at"] <= 8.1 for grant in sliding)
    assert session["state"] == "reauthorization_required"
    assert len(server.asked["session"]) <= 6, "the end of the session caused a storm of requests"
    assert server.reused == 0
    assert "g0: reauthorization_required" not in log


def _ending(refresher: Command, name: str, left: float, **changes: Any) -> float:
    """Import a grant whose login ends in ``left`` seconds, after a month; return when."""
    fields = GRANT | {"refresh_token": f"refresh-token-of-{name}", "access_token": f"access-token-of-{name}"}
    refresher.bring(name, fields | {"expires_in": 4 * HOUR})
    stored = records.load(refresher.directories, name)
    assert isinstance(stored.record, Grant)
    ends = time.time() + left
    changes = {"login_ends_at": ends, "authorized_at": ends - 30 * DAY} | changes
    records.write(refresher.directories, name, stored, msgspec.structs.replace(stored.record, **changes))
    return ends


def test_run_once_warns_of_the_end_of_a_login_once(refresher: Command) -> None:
    """If it failed, a person would learn of the end of a login from failing agents, or get a mail from cron each minute."""
    ends = _ending(refresher, "linear", 50 * 60.0)
    _ending(refresher, "notion", 20 * HOUR)
    _ending(refresher, "slack", 10 * DAY)
    _ending(refresher, "ended", -60.0)
    done = refresher("run-once")
    assert done.code == 0
    linear, notion = sorted(without_times(done.stderr).splitlines())
    assert linear.startswith(f"refresher: linear: {WARNING} 50 min, at {text.clock_time(ends)}, ")
    assert "import it again with 'refresher import linear --replace" in linear
    assert notion.startswith((f"refresher: notion: {WARNING} 20 h, ", f"refresher: notion: {WARNING} 19 h 59 min, "))
    assert [refresher.grant(name).end_warned for name in ("linear", "notion", "slack", "ended")] == [
        HOUR,
        DAY,
        None,
        None,
    ]
    for arguments in ((), ("--json",), ("linear",)):
        again = refresher("run-once", *arguments)
        assert (again.code, again.stderr) == (0, "")
    assert refresher.token("linear").generation == 0, "a warning rotated the grant"


def test_two_daemons_warn_when_it_is_time_and_once(refresher: Command, daemon: Daemon) -> None:
    """If it failed, the warning an hour ahead would come at the next rotation, up to a day later, or from each process."""
    _ending(refresher, "linear", HOUR + 4, end_warned=DAY)
    first, second = daemon(), daemon()
    for process in (first, second):
        heard(process, "watching")
    wait_until(lambda: refresher.grant("linear").end_warned == HOUR, "the warning was given")
    refresher("run-once")
    logs = [stopped(refresher, process) for process in (first, second)]
    assert sum(log.count(f"linear: {WARNING}") for log in logs) == 1
    assert refresher("run-once").stderr == ""


@pytest.mark.parametrize("left", [HOUR / 2, 3 * DAY])
def test_status_shows_when_a_login_ends(refresher: Command, left: float) -> None:
    """If it failed, a person would not see which login ends next; or the table would be wider for everybody."""
    refresher.bring("notion", GRANT)
    assert "LOGIN ENDS" not in refresher("status").stdout
    ends = _ending(refresher, "linear", left)
    head, linear, notion = refresher("status").stdout.splitlines()
    at = head.index("LOGIN ENDS")
    assert linear[at:].startswith("in 30 min" if left < HOUR else ("in 2 d 23 h", "in 3 d"))
    assert notion[at:].startswith("-  ")
    assert max(map(len, (head, linear, notion))) <= 80
    shown = {grant["name"]: grant for grant in json.loads(refresher("status", "--json").stdout)["grants"]}
    assert shown["linear"]["login_ends_at"] == pytest.approx(ends)
    assert (shown["notion"]["login_ends_at"], shown["notion"]["refresh_token_expires_at"]) == (None, None)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"refresh_expires_in": 1800}, 1800.0),
        ({"refresh_token_expires_in": "1800"}, 1800.0),
        ({"x_refresh_token_expires_in": 8726400}, 8726400.0),
        ({"refresh_expires_in": 0}, None),
        ({"refresh_token_expires_at": "in 90000 s"}, 90000.0),
        ({"refresh_token_expires_at": 1.0}, None),
        ({"token_endpoint": "https://auth.atlassian.com/oauth/token"}, 90 * DAY),
    ],
    ids=["Keycloak", "a text", "Intuit", "0: no end", "a time", "a time in the past", "a profile"],
)
def test_an_import_knows_the_end_of_its_refresh_token(
    refresher: Command, fields: dict[str, Any], left: float | None
) -> None:
    """If it failed, an imported login would be lost before its first rotation, although its file says when it ends."""
    if fields.get("refresh_token_expires_at") == "in 90000 s":
        fields = {"refresh_token_expires_at": time.time() + 90000}
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 28800} | fields)
    ends = refresher.grant("linear").refresh_token_expires_at
    assert (None if ends is None else ends - time.time()) == (None if left is None else pytest.approx(left, abs=90))


def test_an_import_refuses_an_end_in_milliseconds(refresher: Command) -> None:
    """If it failed, a refresh token would seem to last for fifty thousand years."""
    path = refresher.write_import("linear", GRANT | {"refresh_token_expires_at": 1_800_000_000_000})
    done = refresher("import", "linear", "--from", str(path))
    assert done.code == 2
    assert "refresh_token_expires_at must be epoch seconds (not milliseconds)" in done.stderr
