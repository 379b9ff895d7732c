"""A restored backup of ``grants/``: its refresh token was spent after the backup."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.encoding import encode
from refresher.grants.record import Grant
from refresher.storage import recovery
from refresher.storage.directories import Directories
from refresher.storage.publishing import Publisher, read_published
from shim._token import parse as shim_parse
from shim._token import render
from tests.support.command import Command, wait_until
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.published import token as shim_token
from tests.support.samples import NOON, at, doubt, grant
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


def _restored(refresher: Command, fields: Mapping[str, Any]) -> str | None:
    """Restore a backup that is one rotation old; return the published live token."""
    refresher.import_grant("linear", fields)
    assert refresher("run-once").code == 0
    grants, backup = refresher.state / "grants", refresher.home / "grants"
    shutil.copytree(grants, backup)
    assert refresher("run-once", "--force").code == 0
    live = refresher.token("linear")
    assert live.generation == 2
    shutil.rmtree(grants)
    backup.rename(grants)
    return live.access_token


def test_a_restored_backup_is_detected_by_the_published_token_which_is_used_until_it_expires(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a restored backup would revoke the token of the agents without an explanation (I1, I5)."""
    server = own_oidc(accessTokenTtl=4)
    live = _restored(refresher, server.mint("public"))
    requests = len(server.requests())
    for options in ((), ("--force",), ()):
        done = refresher("run-once", "--json", *options)
        token = refresher.token("linear")
        if token.expires_at is not None and time.time() < token.expires_at:
            assert (done.code, done.outcome) == (5, "in_doubt"), done.stdout
            assert "backup" in done.results["linear"]["detail"]
            assert (token.generation, token.access_token, token.state) == (2, live, "failing")
            assert len(server.requests()) == requests, "a spent token was sent although the access token is live"
    ends = refresher.grant("linear").expires_at or 0.0
    wait_until(lambda: _is_past(ends), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    error = refresher.token("linear").error
    assert error is not None
    assert "restored from a backup" in error.description
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher("run-once").code == 0
    assert (refresher.token("linear").generation, refresher.token("linear").state) == (4, "active")


def _is_past(at: float) -> bool:
    return time.time() > at + 0.1


def test_a_restored_backup_rotates_if_the_server_accepts_old_refresh_tokens(refresher: Command) -> None:
    """If it failed, a restored backup would be unusable until its access token expires, without need."""
    with TokenServer(lambda _: 3600) as server:
        _restored(refresher, server.grant("linear", replay="unlimited"))
        assert refresher("run-once").code == 5
        done = refresher("run-once", "--force", "--json")
        assert (done.code, refresher.grant("linear").doubt) == (0, None), done.stdout
    assert (refresher.token("linear").generation, refresher.token("linear").state) == (3, "active")


def test_the_dates_of_a_record_suggest_a_backup_if_there_is_no_other_sign(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a person would look for the cause at the server, and restore the same backup again."""
    server = own_oidc()
    _restored(refresher, server.mint("public"))
    shutil.rmtree(refresher.state / "tokens")
    long_ago = msgspec.structs.replace(
        refresher.grant("linear"), issued_at=1e9, expires_at=1e9 + 60, authorized_at=1e9, last_rotation_at=1e9
    )
    (refresher.state / "grants/linear.json").write_bytes(encode(long_ago)[0])
    done = refresher("run-once", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    assert "backup" in done.results["linear"]["detail"]


def _recovered(made: Directories, stored: Grant, now: Moment) -> Grant:
    put(made.record("linear"), stored, stored.begun_from)
    record = recovery.recover(made, "linear", now).record
    assert isinstance(record, Grant)
    return record


@pytest.mark.parametrize("before", [{}, {"doubt": doubt()}, {"dead": True}, {"access_token": None}])
def test_the_times_of_the_published_token_are_adopted_and_the_token_stays_published(
    tmp_path: Path, before: dict[str, object]
) -> None:
    """If it failed, refresher would wait for the expiry of a token that is no longer in use."""
    made, now = directories(tmp_path), at(NOON + 9000)
    newer = grant(generation=7, access_token=Secret("newer"), issued_at=NOON + 8000, expires_at=NOON + 11600)
    Publisher(made).publish(newer)
    found = _recovered(made, grant(issued=at(), **before), now)
    assert found.issued is None, "the age of another token was used"
    assert (found.generation, found.access_token) == (7, None)
    Publisher(made).publish(found)
    seen = read_published(made, "linear")
    assert seen is not None
    assert (seen.access_token, seen.state) == ("newer", "reauthorization_required" if "dead" in before else "failing")
    assert not Publisher(made).is_stale(found), "each run would write the file again"
    assert (found.issued_at, found.expires_at) == (NOON + 8000, NOON + 11600)
    assert found.doubt is not None
    assert (found.doubt.since, found.doubt.restored, found.dead) == (now, True, "dead" in before)
    assert _recovered(made, found, now) == found, "recovery repeats its changes"
    other = grant(grant_id="another login")
    assert _recovered(made, other, now) == other
    put(made.record("linear"), grant(last_rotation_at=NOON))
    assert recovery.backup_hint(made, grant(last_rotation_at=NOON)) == "", "a current record looks like a backup"


def _forge(made: Directories, generation: int) -> bytes:
    """Write a token file that refresher has not published; return its bytes."""
    forged = shim_token(generation, access_token="a-token-of-somebody-else", origins=("https://mcp.example",))
    made.token("linear").write_bytes(render(forged))
    made.token("linear").chmod(0o600)
    return made.token("linear").read_bytes()


@pytest.mark.parametrize(
    "case", ["a huge generation", "a directory of the group", "a file of the group", "another user"]
)
def test_a_token_file_that_somebody_else_may_have_written_changes_no_record(tmp_path: Path, case: str) -> None:
    """If it failed, an agent could put its own token and a huge generation into a record, and stop all publishing."""
    made, now = directories(tmp_path), clocks.now()
    stored = grant(issued_at=now.wall - 60, expires_at=now.wall + 3600, last_rotation_at=now.wall - 60)
    Publisher(made).publish(stored)
    forged = _forge(made, 10**18 - 2 if case == "a huge generation" else 9)
    if case == "a directory of the group":
        made.tokens.chmod(0o770)
    elif case == "a file of the group":
        made.token("linear").chmod(0o660)
    elif case == "another user":
        os.chown(made.token("linear"), 1234, 1234)
    assert _recovered(made, stored, now) == stored
    assert read_published(made, "linear", stored) is None
    assert Publisher(made).current(stored) == range(3, 3)
    assert Publisher(made).publish(stored)
    (aside,) = made.tokens.glob("linear.json.aside.*")
    assert aside.read_bytes() == forged
    assert shim_parse(made.token("linear").read_bytes()).generation == 3


def test_a_token_file_for_which_there_was_time_is_a_sign_of_a_backup(tmp_path: Path) -> None:
    """If it failed, a backup would be restored unnoticed if the grant rotates often, and the login would end (I1)."""
    made, now = directories(tmp_path), clocks.now()
    stored = grant(issued_at=now.wall - 60, expires_at=now.wall + 3600, last_rotation_at=now.wall - 60)
    for generation, found in ((3 + 60, 3 + 60), (3 + 90, 3)):
        _forge(made, generation)
        assert _recovered(made, stored, now).generation == found


def test_a_restored_backup_has_no_grace_period(tmp_path: Path) -> None:
    """If it failed, a refresh token that was used long ago would be replayed, and end the token that readers have (I1)."""
    made, now = directories(tmp_path), at(NOON + 60)
    Publisher(made).publish(grant(generation=7, access_token=Secret("newer"), issued_at=NOON, expires_at=NOON + 3600))
    found = _recovered(made, grant(replay=30.0), now)
    assert found.doubt is not None
    assert not policy.replay_allowed(found, now)
