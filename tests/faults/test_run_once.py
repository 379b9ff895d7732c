"""Whole runs that lose answers, hear signals, or wait for a lock."""

import fcntl
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refresher.common.errors import LockBusy
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import lock
from refresher.storage.publishing import Publisher
from tests.support.command import Command, wait_until
from tests.support.daemon import heard
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.samples import grant

Start = Callable[..., OIDC]


def _expired(refresher: Command) -> bool:
    expires_at = refresher.grant("linear").expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


def _retry_at(refresher: Command) -> float:
    failure = refresher.grant("linear").failure
    return failure.retry_at or 0.0 if failure is not None else 0.0


def _live(refresher: Command, server: OIDC, client: str = "public", **settings: str) -> str:
    """Import a grant and rotate it once; return the live access token."""
    refresher.import_grant("linear", server.mint(client) | settings)
    assert refresher("run-once").code == 0
    token = refresher.token("linear").access_token
    assert token is not None
    return token


# --- in doubt -----------------------------------------------------------------------------------------------------


def test_after_a_lost_answer_the_live_token_is_used_to_its_end_and_the_loss_is_named(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a lost answer would revoke the live token at once, or end in a death nobody can explain (I1, I5)."""
    server = own_oidc(accessTokenTtl=3)
    live = _live(refresher, server)
    server.script(drop=True, process=True)
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (5, "in_doubt")
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live)
    assert token.error is not None
    assert token.error.code == "in_doubt"
    if not _expired(refresher):
        assert refresher("run-once", "--force", "--json").code == 5, "force skipped the wait"
        if not _expired(refresher):
            assert len(server.requests()) == 2
    wait_until(lambda: _expired(refresher), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    assert "lost" in done.results["linear"]["detail"]
    assert refresher.leftovers() == []


def test_after_a_lost_request_it_goes_on_by_itself(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a connection that broke before the server looked would call for a person (I4)."""
    server = own_oidc(accessTokenTtl=2)
    _live(refresher, server)
    server.script(drop=True, process=False)
    assert refresher("run-once", "--force").code == 5
    wait_until(lambda: _expired(refresher), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    grant = refresher.grant("linear")
    assert (grant.doubt, grant.failure) == (None, None)


def test_a_demand_ends_the_wait_for_a_token_that_is_dead(refresher: Command, own_oidc: Start) -> None:
    """If it failed, agents would sit on a revoked token for an hour to protect it."""
    server = own_oidc()
    _live(refresher, server)
    server.script(drop=True, process=False)
    assert refresher("run-once", "--force").code == 5
    (refresher.state / "demands/linear.1").touch()
    done = refresher("run-once", "--force", "--json")
    assert done.outcome == "rotated"


def test_an_import_of_the_same_token_does_not_end_the_wait(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a person in a hurry would revoke the live token with a token that may be spent (I1)."""
    server = own_oidc()
    fields = server.mint("public")
    refresher.import_grant("linear", fields)
    assert refresher("run-once").code == 0
    live = refresher.token("linear").access_token
    server.script(drop=True, process=True)
    assert refresher("run-once", "--force").code == 5
    again = fields | {"refresh_token": refresher.refresh_token("linear"), "max_age": 1}
    for more in ({}, {"access_token": "an-older-access-token", "expires_in": 0}):
        refresher.import_grant("linear", again | more, "--replace")
        assert refresher("run-once", "--force").code == 5
        assert refresher.token("linear").access_token == live
    assert len(server.requests()) == 2
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher("run-once").code == 0, "a new token was made to wait for the old one's doubt"


def test_a_replay_is_made_at_once_where_the_server_allows_it(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a grace would pass unused, and with it the only moment to save the login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"replay": "30s"})
    server.script(drop=True, process=False)
    done = refresher("run-once", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert len(server.requests()) == 2


def test_an_unreadable_success_is_kept_for_a_person(refresher: Command, own_oidc: Start) -> None:
    """If it failed, the only copy of a new refresh token in a garbled answer would be gone (I6)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(status=200, body="<html>refreshed!</html>", headers={"content-type": "text/html"}, process=True)
    done = refresher("run-once", "--json")
    assert (done.code, done.outcome) == (5, "in_doubt")
    (kept,) = (refresher.state / "grants").glob("linear.answer.*")
    assert kept.read_bytes() == b"<html>refreshed!</html>"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    assert f"could not be read (it is kept as {kept.name}" in done.results["linear"]["detail"]
    refresher("remove", "linear")
    assert not kept.exists(), "a removed grant's answer lay about"


@pytest.mark.parametrize(
    ("answer", "code", "outcome"),
    [
        ({"status": 503, "headers": {"retry-after": "120"}}, 4, "transient"),
        ({"status": 429}, 4, "transient"),
        ({"status": 401, "body": {"error": "invalid_client"}}, 4, "client_rejected"),
        ({"status": 400, "body": "who are you?"}, 4, "transient"),
        ({"status": 502}, 5, "in_doubt"),
    ],
)
def test_each_failure_has_its_word_and_is_not_repeated_before_its_time(
    refresher: Command, own_oidc: Start, answer: dict[str, object], code: int, outcome: str
) -> None:
    """If it failed, cron would storm a server in trouble, or its alarms would say the wrong thing."""
    server = own_oidc()
    live = _live(refresher, server)
    server.script(**answer)
    for _ in range(2):
        done = refresher("run-once", "--force", "--json") if _ == 0 else refresher("run-once", "--json")
        assert (done.code, done.outcome) == (code, outcome)
    assert len(server.requests()) == 2
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live)
    if "headers" in answer:
        assert _retry_at(refresher) > time.time() + 60


# --- signals and locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_mid_exchange_loses_nothing(refresher: Command, own_oidc: Start, number: signal.Signals) -> None:
    """If it failed, Ctrl-C at the wrong moment would cost a login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(hold=True)
    process = refresher.start("run-once", "--json")
    wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
    process.send_signal(number)
    heard(process, "completes first")
    server.release()
    done = refresher.finish(process)
    assert done.code == 128 + number
    assert done.outcome == "rotated"
    assert server.introspect(refresher.token("linear").access_token)["active"]
    assert refresher.leftovers() == []


def test_a_signal_while_waiting_for_the_lock_ends_the_wait(refresher: Command, own_oidc: Start) -> None:
    """If it failed, Ctrl-C would seem dead for half a minute."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with (refresher.state / "grants/linear.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = refresher.start("run-once", "--json")
        wait_until(lambda: _rotates(process), "it waits for the lock")
        process.send_signal(signal.SIGINT)
        done = refresher.finish(process)
    assert (done.code, done.outcome) == (130, "interrupted")
    assert server.requests() == []


def _rotates(process: subprocess.Popen[str]) -> bool:
    """Whether a run has started the thread of a rotation, whose first deed is to wait for the lock."""
    # Another one writes the log.
    return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 2


def test_a_closed_stderr_is_no_file_of_ours(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a message would be written into the intent, and a crash after it be misread (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(hold=True)
    process = refresher.start("run-once", prefix=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
    intent = (refresher.state / "grants/linear.intent").read_bytes()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # the handler runs at once or not at all; there is nothing to wait for
    assert (refresher.state / "grants/linear.intent").read_bytes() == intent
    server.release()
    assert refresher.finish(process).code == 143
    assert refresher.grant("linear").generation == 1


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">/dev/full", "2>/dev/full", "<&-"])
def test_the_exit_code_survives_streams_that_nobody_reads(refresher: Command, own_oidc: Start, stream: str) -> None:
    """If it failed, a full log disk would turn 'a person must help' into a meaningless number."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.revoke(server.last_grant_id)
    process = refresher.start("run-once", prefix=("sh", "-c", f'exec "$@" {stream}', "sh"))
    assert refresher.finish(process).code == 3


def test_a_lock_that_stays_held_is_busy_and_what_the_holder_did_is_adopted(tmp_path: Path) -> None:
    """If it failed, waiting would have no end, or a rotation made meanwhile would be reported as a failure."""
    made = directories(tmp_path)
    put(made.record("linear"), grant(generation=5))
    path = made.lock("linear")
    with lock.held(path, stopping=lambda: False):
        with pytest.raises(LockBusy, match="fuser"), lock.held(path, stopping=lambda: False, wait=0.1):
            pass
        terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.1)
        for seen, outcome in ((5, "lock_busy"), (4, "adopted")):
            result = rotate(Publisher(made), Order(name="linear", seen=seen), terms)
            assert result is not None
            assert result.outcome == outcome
    assert path.exists(), "the lock file was removed under those who wait for it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
