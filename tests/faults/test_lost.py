"""Whole runs against faults: lost answers, kills, signals, full and broken disks."""

import fcntl
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
import pytest

from refresher import clocks, lock
from refresher.attempt import Attempt
from refresher.errors import LockBusy
from refresher.grant import Doubt
from refresher.rotation import Order, Terms, rotate
from refresher.store import load
from tests.conftest import need
from tests.support.command import Command, Done, wait_until
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts, no_strace
from tests.support.samples import grant

Start = Callable[..., OIDC]


def _outcome(done: Done) -> str:
    return str(done.results["linear"]["outcome"])


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
    assert (done.code, _outcome(done)) == (5, "in_doubt")
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
    assert (done.code, _outcome(done)) == (3, "reauthorization_required")
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
    assert (done.code, _outcome(done)) == (0, "rotated")
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
    assert _outcome(done) == "rotated"


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
    assert (done.code, _outcome(done)) == (0, "rotated")
    assert len(server.requests()) == 2


def test_an_unreadable_success_is_kept_for_a_person(refresher: Command, own_oidc: Start) -> None:
    """If it failed, the only copy of a new refresh token in a garbled answer would be gone (I6)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(status=200, body="<html>refreshed!</html>", headers={"content-type": "text/html"}, process=True)
    done = refresher("run-once", "--json")
    assert (done.code, _outcome(done)) == (5, "in_doubt")
    (kept,) = (refresher.state / "grants").glob("linear.answer.*")
    assert kept.read_bytes() == b"<html>refreshed!</html>"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
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
        assert (done.code, _outcome(done)) == (code, outcome)
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
    server.script(delayMs=1500)
    process = refresher.start("run-once", "--json")
    wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
    process.send_signal(number)
    done = refresher.finish(process)
    assert done.code == 128 + number
    assert "finished first" in done.stderr
    assert _outcome(done) == "rotated"
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
    assert (done.code, _outcome(done)) == (130, "interrupted")
    assert server.requests() == []


def _rotates(process: subprocess.Popen[str]) -> bool:
    """Whether a run has started the thread of a rotation, whose first deed is to wait for the lock."""
    return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1


def test_a_closed_stderr_is_no_file_of_ours(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a message would be written into the intent, and a crash after it be misread (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    server.script(delayMs=1500)
    process = refresher.start("run-once", prefix=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
    intent = (refresher.state / "grants/linear.intent").read_bytes()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # the handler runs at once or not at all; there is nothing to wait for
    assert (refresher.state / "grants/linear.intent").read_bytes() == intent
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
            result = rotate(made, Order(name="linear", seen=seen), terms)
            assert result is not None
            assert result.outcome == outcome
    assert path.exists(), "the lock file was removed under those who wait for it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- kills and disks ----------------------------------------------------------------------------------------------

CALLS = ["fsync", "pwrite64", "ftruncate", "rename", "unlink", "fchmod", "flock", "connect", "sendto", "recvfrom"]


@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_system_call_the_next_run_goes_on_or_says_in_doubt(
    refresher: Command, own_oidc: Start, call: str
) -> None:
    """If it failed, a kill at the wrong instant would lose a token, or send a spent one again (I1, I4, I6)."""
    need(no_strace())
    server = own_oidc()
    for number in range(1, 40):
        live = _replace(refresher, server)
        kill = (
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:signal=KILL:when={number}",
        )
        process = refresher.start("run-once", "--force", "--json", prefix=kill)
        code = refresher.finish(process).code
        done = refresher("run-once", "--json")
        assert _outcome(done) in ("not_due", "adopted", "in_doubt"), done.stdout
        assert refresher.leftovers() == []
        forced = refresher("run-once", "--force", "--json")
        if _outcome(done) == "in_doubt":
            assert _outcome(forced) == "in_doubt"
            assert refresher.token("linear").access_token == live
        else:
            assert _outcome(forced) == "rotated"
            assert server.introspect(refresher.token("linear").access_token)["active"]
        if code == 0:
            break
    else:
        pytest.fail(f"40 kills at {call} and no end")
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def _replace(refresher: Command, server: OIDC) -> str | None:
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher("run-once").code == 0
    return refresher.token("linear").access_token


@pytest.mark.parametrize("call", ["import", "remove"])
def test_an_import_or_a_removal_that_is_killed_is_old_or_new(refresher: Command, own_oidc: Start, call: str) -> None:
    """If it failed, a killed import could leave half a record, or both logins lost (I4)."""
    need(no_strace())
    server = own_oidc()
    for number in range(1, 40):
        _replace(refresher, server)
        old = refresher.grant("linear").refresh_token
        fields = server.mint("public")
        path = refresher.write_import("new", fields)
        arguments = ("import", "linear", "--replace", "--from", str(path)) if call == "import" else ("remove", "linear")
        calls = "fsync,pwrite64,rename,unlink,fchmod"
        kill = (
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={calls}",
            "-e",
            f"inject={calls}:signal=KILL:when={number}",
        )
        code = refresher.finish(refresher.start(*arguments, prefix=kill)).code
        assert refresher("run-once").code == 0
        assert refresher.leftovers() == []
        record = refresher.record("linear")
        if call == "remove":
            assert refresher.token("linear").state == ("removed" if not hasattr(record, "refresh_token") else "active")
        else:
            assert old is not None
            spent = {old.fingerprint()} & set(refresher.grant("linear").spent)
            assert refresher.grant("linear").refresh_token == old or not spent
        if code == 0:
            break
    else:
        pytest.fail("40 kills and no end")
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def test_a_full_disk_fails_before_anything_is_spent(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a full disk would cost every login that falls due on it."""
    need(no_mounts())
    server = own_oidc()
    with mounted(refresher.state, "size=256k"):
        refresher.import_grant("linear", server.mint("public"))
        filler = refresher.state / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(os.urandom(512 * 1024))
        done = refresher("run-once", "--json")
        assert (done.code, _outcome(done)) == (4, "storage_failed")
        assert "nothing was spent" in done.results["linear"]["detail"]
        assert server.requests() == []
        assert refresher.leftovers() == []
        filler.unlink()
        done = refresher("run-once", "--json")
        assert (done.code, _outcome(done)) == (0, "rotated")


def test_an_unreadable_answer_is_kept_on_a_full_disk_too(tmp_path: Path) -> None:
    """If it failed, a full disk would cost the only copy of a token that came in a garbled answer (I6)."""
    need(no_mounts())
    made = directories(tmp_path)
    with mounted(made.grants, "size=192k"):
        put(made.record("linear"), grant())
        attempt = Attempt(made, "linear", load(made, "linear"))
        attempt.reserve(grant(), clocks.now())
        with pytest.raises(OSError, match="No space"):
            (made.grants / "filler").write_bytes(bytes(512 * 1024))
        answer = os.urandom(20_000)
        told = attempt.keep_answer(answer, 1000.0)
        assert "linear.answer.1000" in told
        assert (made.grants / "linear.answer.1000").read_bytes() == answer
        (made.grants / "more").write_bytes(bytes(44 * 1024))
        bigger = attempt.keep_answer(answer, 1000.0)
        assert str(made.spill / "linear.answer.1001") in bigger
        assert (made.spill / "linear.answer.1001").read_bytes() == answer
        attempt.close()


def test_the_first_unreadable_answers_of_each_doubt_are_kept(tmp_path: Path) -> None:
    """If it failed, a maintenance page last month would keep the answer of today from being kept (I6)."""
    made = directories(tmp_path)
    put(made.record("linear"), grant())
    for number in range(20):
        (made.grants / f"linear.answer.{number}").touch()
        (made.grants / f"linear.answer.0.answer.{number}").touch()
    attempt = Attempt(made, "linear", load(made, "linear"))
    assert "linear.answer.500" in attempt.keep_answer(b"today", 500.0)
    put(made.record("linear"), grant(doubt=Doubt(since=msgspec.structs.replace(clocks.now(), wall=500.0))))
    attempt = Attempt(made, "linear", load(made, "linear"))
    told = [attempt.keep_answer(b"again", 501.0 + number) for number in range(20)]
    assert sum("linear.answer" in words for words in told) == 15
    assert "not kept" in told[-1]


@pytest.mark.parametrize("fault", ["rename:error=EIO", "fsync:error=EIO:when=4+", "pwrite64:error=ENOSPC:when=4+"])
def test_a_disk_that_fails_after_the_exchange_loses_nothing(refresher: Command, own_oidc: Start, fault: str) -> None:
    """If it failed, an answer that the disk refuses would be gone with the process (I6)."""
    need(no_strace())
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    spill = refresher.home / "spill"
    call = fault.partition(":")[0]
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}")
    if call == "rename":
        process = refresher.start("--spill-dir", str(spill), "run-once", "--json", prefix=prefix)
        done = refresher.finish(process)
        assert (done.code, _outcome(done)) == (4, "storage_failed"), "nothing could be published"
        assert len(list(spill.iterdir())) == 1
    else:
        # Every place fails: it goes on trying, until one takes it.
        process = refresher.start("--spill-dir", str(spill), "run-once", "--json", prefix=prefix)
        wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
        process.send_signal(signal.SIGTERM)
        assert _shouts(process.stderr), "it gave up with the only copy in its memory"
        process.kill()
        refresher.finish(process)
        done = refresher("--spill-dir", str(spill), "run-once", "--json")
        assert _outcome(done) in ("adopted", "not_due", "in_doubt")
        return
    done = refresher("--spill-dir", str(spill), "run-once", "--json")
    assert (done.code, _outcome(done)) == (0, "adopted"), done.stdout
    assert "adopted" in done.stderr
    assert list(spill.iterdir()) == []
    assert refresher.leftovers() == []
    assert server.introspect(refresher.token("linear").access_token)["active"]
    assert refresher("run-once", "--force").code == 0
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def _shouts(stderr: IO[str] | None) -> bool:
    """Read what it says until it says that something is not saved; False where it ends without."""
    assert stderr is not None
    return any("NOT SAVED YET" in line for line in stderr)
