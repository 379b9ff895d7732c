"""Disks that are full, refuse, or forget."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
import pytest

from refresher import clocks
from refresher.attempt import Attempt
from refresher.grant import Doubt
from refresher.store import load
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.parts import injecting, mounted, no_mounts, no_strace
from tests.support.samples import grant

Start = Callable[..., OIDC]


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
        assert (done.code, done.outcome) == (4, "storage_failed")
        assert "nothing was spent" in done.results["linear"]["detail"]
        assert server.requests() == []
        assert refresher.leftovers() == []
        filler.unlink()
        done = refresher("run-once", "--json")
        assert (done.code, done.outcome) == (0, "rotated")


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
    call, _, how = fault.partition(":")
    prefix = injecting(call, how)
    if call == "rename":
        process = refresher.start("--spill-dir", str(spill), "run-once", "--json", prefix=prefix)
        done = refresher.finish(process)
        assert (done.code, done.outcome) == (4, "storage_failed"), "nothing could be published"
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
        assert done.outcome in ("adopted", "not_due", "in_doubt")
        return
    done = refresher("--spill-dir", str(spill), "run-once", "--json")
    assert (done.code, done.outcome) == (0, "adopted"), done.stdout
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
