"""A backup of ``grants/`` that somebody has put back: the refresh token in it was used up since."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.record import Grant, encode
from refresher.storage import recovery
from refresher.storage.directories import Directories
from refresher.storage.publishing import Publisher
from tests.support.command import Command, wait_until
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.samples import NOON, at, doubt, grant
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


def _restored(refresher: Command, fields: Mapping[str, Any]) -> str | None:
    """Put a backup back that is one rotation old; return the live token that readers have."""
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


def test_a_restored_backup_is_recognised_by_what_readers_have_and_their_token_is_used_to_its_end(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a restored backup would revoke the token that agents are using, and nobody would know why (I1, I5)."""
    server = own_oidc(accessTokenTtl=4)
    live = _restored(refresher, server.mint("public"))
    asked = len(server.requests())
    for options in ((), ("--force",), ()):
        done = refresher("run-once", "--json", *options)
        token = refresher.token("linear")
        if token.expires_at is not None and not _is_over(token.expires_at):
            assert (done.code, done.outcome) == (5, "in_doubt"), done.stdout
            assert "backup" in done.results["linear"]["detail"]
            assert (token.generation, token.access_token, token.state) == (2, live, "failing")
            assert len(server.requests()) == asked, "a spent token was sent while there was one to lose"
    ends = refresher.grant("linear").expires_at or 0.0
    wait_until(lambda: _is_over(ends), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    error = refresher.token("linear").error
    assert error is not None
    assert "restored from a backup" in error.description
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher("run-once").code == 0
    assert (refresher.token("linear").generation, refresher.token("linear").state) == (4, "active")


def _is_over(at: float) -> bool:
    return time.time() > at + 0.1


def test_where_the_server_takes_old_refresh_tokens_a_restored_backup_goes_on(refresher: Command) -> None:
    """If it failed, a backup of a login that does not rotate would be useless until its access token ends."""
    with TokenServer(lambda _: 3600) as server:
        _restored(refresher, server.grant("linear", replay="unlimited"))
        assert refresher("run-once").code == 5
        done = refresher("run-once", "--force", "--json")
        assert (done.code, refresher.grant("linear").doubt) == (0, None), done.stdout
    assert (refresher.token("linear").generation, refresher.token("linear").state) == (3, "active")


def test_where_nothing_else_tells_the_file_itself_does(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a person would look for the fault at the server, and restore the same backup again."""
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
def test_what_readers_have_is_taken_over(tmp_path: Path, before: dict[str, object]) -> None:
    """If it failed, the wait would be reckoned from a token that is no longer in use."""
    made, now = directories(tmp_path), at(NOON + 9000)
    newer = grant(generation=7, access_token=Secret("newer"), issued_at=NOON + 8000, expires_at=NOON + 11600)
    Publisher(made).publish(newer)
    found = _recovered(made, grant(issued=at(), **before), now)
    assert found.issued is None, "the age of another token was taken for its own"
    assert (found.generation, found.access_token) == (7, newer.access_token)
    assert (found.issued_at, found.expires_at) == (NOON + 8000, NOON + 11600)
    assert found.doubt is not None
    assert (found.doubt.since, found.doubt.restored, found.dead) == (now, True, "dead" in before)
    assert _recovered(made, found, now) == found, "it would be done again and again"
    other = grant(grant_id="another login")
    assert _recovered(made, other, now) == other
    put(made.record("linear"), grant(last_rotation_at=NOON))
    assert recovery.backup_hint(made, grant(last_rotation_at=NOON)) == "", "a fresh file came from a backup"


def test_a_restored_backup_has_no_grace_period(tmp_path: Path) -> None:
    """If it failed, a refresh token that was used long ago would be replayed, and end the token that readers have (I1)."""
    made, now = directories(tmp_path), at(NOON + 60)
    Publisher(made).publish(grant(generation=7, access_token=Secret("newer"), issued_at=NOON, expires_at=NOON + 3600))
    found = _recovered(made, grant(replay=30.0), now)
    assert found.doubt is not None
    assert not policy.replay_allowed(found, now)
