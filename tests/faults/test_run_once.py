"""``run-once`` with lost and unreadable answers, signals, closed streams, and locks."""

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
from refresher.storage.file_store import FileStore
from tests.support.command import Command, wait_until
from tests.support.daemon import heard
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.samples import grant

Start = Callable[..., OIDC]


def _expired(refresher: Command) -> bool:
    expires_at = refresher.grant("linear").expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


def _live(refresher: Command, server: OIDC, client: str = "public", **settings: str) -> str:
    """Import a grant and rotate it once; return the live access token."""
    refresher.import_grant("linear", server.mint(client) | settings)
    assert refresher("run-once").code == 0
    token = refresher.token("linear").access_token
    assert token is not None
    return token


# --- in doubt -----------------------------------------------------------------------------------------------------


def test_after_a_lost_answer_the_token_is_used_until_it_expires_and_the_loss_is_reported(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a lost answer would revoke the live token, or the grant would end without an explanation (I1, I5)."""
    server = own_oidc(accessTokenTtl=3)
    live = _live(refresher, server)
    server.script(drop=True, process=True)
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (5, "in_doubt")
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live)
    assert token.error is not None
    assert token.error.code == "in_doubt"
    done = refresher("run-once", "--force", "--json")
    if time.time() < (token.expires_at or 0.0):
        assert (done.code, len(server.requests())) == (5, 2), "--force skipped the wait"
    wait_until(lambda: _expired(refresher), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    assert "lost" in done.results["linear"]["detail"]
    assert refresher.leftovers() == []


def test_after_a_lost_request_the_grant_rotates_by_itself(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a request that never reached the server would require a person (I4)."""
    server = own_oidc(accessTokenTtl=2)
    _live(refresher, server)
    server.script(drop=True, process=False)
    assert refresher("run-once", "--force").code == 5
    wait_until(lambda: _expired(refresher), "the access token has expired")
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    grant = refresher.grant("linear")
    assert (grant.doubt, grant.failure) == (None, None)


def test_a_demand_ends_the_wait_of_a_grant_in_doubt(refresher: Command, own_oidc: Start) -> None:
    """If it failed, agents would have to use a revoked token for an hour, only to protect it."""
    server = own_oidc()
    _live(refresher, server)
    server.script(drop=True, process=False)
    assert refresher("run-once", "--force").code == 5
    (refresher.state / "demands/linear.1").touch()
    done = refresher("run-once", "--force", "--json")
    assert done.outcome == "rotated"


def test_an_import_of_the_same_refresh_token_does_not_end_the_wait(refresher: Command, own_oidc: Start) -> None:
    """If it failed, an import would revoke the live token with a refresh token that may be spent (I1)."""
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
    assert refresher("run-once").code == 0, "a new refresh token waits because of the old one"


def test_a_replay_is_sent_at_once_if_the_server_allows_it(refresher: Command, own_oidc: Start) -> None:
    """If it failed, the grace period would end unused, and the login would be lost."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"replay": "30s"})
    server.script(drop=True, process=False)
    done = refresher("run-once", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert len(server.requests()) == 2


def test_an_unreadable_answer_is_kept_for_a_person(refresher: Command, own_oidc: Start) -> None:
    """If it failed, the only copy of a new refresh token in an unreadable answer would be lost (I6)."""
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
    assert not kept.exists(), "the answer of a removed grant is still there"


@pytest.mark.parametrize(
    ("answer", "code", "outcome"),
    [
        ({"status": 503, "headers": {"retry-after": "120"}}, 4, "transient"),
        ({"status": 429}, 4, "transient"),
        ({"status": 401, "body": {"error": "invalid_client"}}, 4, "client_rejected"),
        ({"status": 400, "body": "no JSON"}, 4, "transient"),
        ({"status": 502}, 5, "in_doubt"),
    ],
)
def test_each_failure_has_its_own_outcome_and_is_retried_only_after_the_backoff(
    refresher: Command, own_oidc: Start, answer: dict[str, object], code: int, outcome: str
) -> None:
    """If it failed, cron would flood a server that has a problem, or report the wrong outcome."""
    server = own_oidc()
    live = _live(refresher, server)
    server.script(**answer)
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (code, outcome)
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live)
    failure = refresher.grant("linear").failure
    assert failure is not None
    assert failure.retry_at is not None
    if "headers" in answer:
        assert failure.retry_at > failure.at + 60
    done = refresher("run-once", "--json")
    if time.time() < failure.retry_at:  # otherwise the machine is slow, and the run may retry
        assert (done.code, done.outcome) == (code, outcome)
        assert len(server.requests()) == 2


# --- signals and locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_an_exchange_loses_no_token(
    refresher: Command, own_oidc: Start, number: signal.Signals
) -> None:
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
    """If it failed, Ctrl-C would have no effect for half a minute."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with (refresher.state / "grants/linear.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = refresher.start("run-once", "--json")
        wait_until(lambda: _rotates(process), "the run waits for the lock")
        process.send_signal(signal.SIGINT)
        done = refresher.finish(process)
    assert (done.code, done.outcome) == (130, "interrupted")
    assert server.requests() == []


def _rotates(process: subprocess.Popen[str]) -> bool:
    """Whether a run has started the thread of a rotation, which first waits for the lock."""
    # A second thread writes the log.
    return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 2


def test_with_a_closed_stderr_messages_go_to_no_file_of_the_grant(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a message would be written to the intent, and recovery would misread it after a crash (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(hold=True)
    process = refresher.start("run-once", prefix=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
    intent = (refresher.state / "grants/linear.intent").read_bytes()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # the handler runs at once or never; there is no condition to wait for
    assert (refresher.state / "grants/linear.intent").read_bytes() == intent
    server.release()
    assert refresher.finish(process).code == 143
    assert refresher.grant("linear").generation == 1


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">/dev/full", "2>/dev/full", "<&-"])
def test_closed_and_full_streams_do_not_change_the_exit_code(refresher: Command, own_oidc: Start, stream: str) -> None:
    """If it failed, a full log disk would hide the exit code that says that a person must log in."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.revoke(server.last_grant_id)
    process = refresher.start("run-once", prefix=("sh", "-c", f'exec "$@" {stream}', "sh"))
    assert refresher.finish(process).code == 3


def test_a_held_lock_is_reported_as_busy_and_a_rotation_of_its_holder_is_adopted(tmp_path: Path) -> None:
    """If it failed, a run would wait for ever, or report a rotation of another process as a failure."""
    made = directories(tmp_path)
    put(made.record("linear"), grant(generation=5))
    path = made.lock("linear")
    with lock.held(path, stopping=lambda: False):
        with pytest.raises(LockBusy, match="fuser"), lock.held(path, stopping=lambda: False, wait=0.1):
            pass
        terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.1)
        for seen, outcome in ((5, "lock_busy"), (4, "adopted")):
            result = rotate(FileStore(made), Order(name="linear", seen=seen), terms)
            assert result is not None
            assert result.outcome == outcome
    assert path.exists(), "the lock file was removed while others wait for it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
