"""Disks that are full, read-only, or fail."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.common import clocks
from refresher.grants.record import Doubt
from refresher.storage.journal import Attempt
from refresher.storage.records import load
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard
from tests.support.fake_state import directories, put
from tests.support.oidc import OIDC
from tests.support.parts import injecting, mounted, no_mounts, no_strace
from tests.support.samples import grant
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


def test_a_full_disk_fails_before_anything_is_spent(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a full disk would cost the refresh token of every grant that is due."""
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


def test_an_unreadable_answer_is_kept_even_on_a_full_disk(tmp_path: Path) -> None:
    """If it failed, a full disk would lose the only copy of a token in an unreadable answer (I6)."""
    need(no_mounts())
    made = directories(tmp_path)
    with mounted(made.grants, "size=192k"):
        put(made.record("linear"), grant())
        attempt = Attempt(made, "linear", load(made, "linear"))
        attempt.reserve(grant(), clocks.now())
        with pytest.raises(OSError, match="No space"):
            (made.grants / "filler").write_bytes(bytes(512 * 1024))
        answer = os.urandom(20_000)
        kept = attempt.keep_answer(answer, 1000.0)
        assert "linear.answer.1000" in kept
        assert (made.grants / "linear.answer.1000").read_bytes() == answer
        (made.grants / "more").write_bytes(bytes(44 * 1024))
        spilled = attempt.keep_answer(answer, 1000.0)
        assert str(made.spill / "linear.answer.1001") in spilled
        assert (made.spill / "linear.answer.1001").read_bytes() == answer
        attempt.close()


def test_the_first_unreadable_answers_of_each_doubt_are_kept(tmp_path: Path) -> None:
    """If it failed, old maintenance pages would prevent an answer of today from being kept (I6)."""
    made = directories(tmp_path)
    put(made.record("linear"), grant())
    for number in range(20):
        (made.grants / f"linear.answer.{number}").touch()
        (made.grants / f"linear.answer.0.answer.{number}").touch()
    attempt = Attempt(made, "linear", load(made, "linear"))
    assert "linear.answer.500" in attempt.keep_answer(b"today", 500.0)
    put(made.record("linear"), grant(doubt=Doubt(since=msgspec.structs.replace(clocks.now(), wall=500.0))))
    attempt = Attempt(made, "linear", load(made, "linear"))
    kept = [attempt.keep_answer(b"again", 501.0 + number) for number in range(20)]
    assert sum("linear.answer" in message for message in kept) == 15
    assert "not kept" in kept[-1]


@pytest.mark.parametrize(
    "fault", ["rename,renameat:error=EIO", "fsync:error=EIO:when=4+", "pwrite64:error=ENOSPC:when=4+"]
)
def test_a_disk_that_fails_after_the_exchange_loses_nothing(refresher: Command, own_oidc: Start, fault: str) -> None:
    """If it failed, an answer that cannot be written would be lost when the process ends (I6)."""
    need(no_strace())
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    spill = refresher.home / "spill"
    call, _, how = fault.partition(":")
    prefix = injecting(call, how)
    if "rename" in call:
        process = refresher.start("--spill-dir", str(spill), "run-once", "--json", prefix=prefix)
        done = refresher.finish(process)
        assert (done.code, done.outcome) == (4, "storage_failed"), "nothing could be published"
        assert len(list(spill.iterdir())) == 1
    else:
        # Every place fails: refresher tries again until it can write to one.
        process = refresher.start("--spill-dir", str(spill), "run-once", "--json", prefix=prefix)
        wait_until(lambda: len(server.requests()) == 1, "the request has arrived")
        process.send_signal(signal.SIGTERM)
        heard(process, "NOT SAVED YET")
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


# --- before the exchange ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "fault", "code"),
    [
        ("fsync", "error=EIO:when=1", 4),
        ("fsync", "error=EIO:when=2", 4),
        ("fsync", "error=EIO:when=3", 4),
        ("pwrite64", "error=EDQUOT:when=1", 4),
        ("pwrite64", "error=ENOSPC:when=2", 4),
        ("flock", "error=ENOLCK", 4),
        ("flock", "error=EOPNOTSUPP", 4),
        ("flock", "error=ENOSYS", 4),
        ("flock", "error=EINTR:when=1", 0),
        # The rotation is complete, even if the lock cannot be released.
        ("flock", "error=EIO:when=2", 0),
    ],
)
def test_a_disk_that_fails_before_the_exchange_costs_no_refresh_token(
    refresher: Command, call: str, fault: str, code: int
) -> None:
    """If it failed, a refresh token would be spent although its answer cannot be saved, or be sent without a lock."""
    need(no_strace())
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        done = refresher("run-once", "--json", prefix=injecting(call, fault))
        assert (done.code, done.outcome) == (code, "storage_failed" if code else "rotated")
        # The history meets the same fault, and may say so.
        assert len([line for line in done.stderr.splitlines() if " history: " not in line]) <= 1
        assert len(server.asked["client"]) == (0 if code else 1)
        assert refresher.leftovers() == []
        if call == "flock" and code:
            assert "has no locks (flock); put --state-dir" in done.stderr
        assert refresher("run-once").code == 0
        assert len(server.asked["client"]) == 1


@pytest.mark.parametrize("command", ["run-once", "run"])
@pytest.mark.parametrize("refusal", ["no inode", "one inode", "read-only"])
def test_a_file_system_without_inodes_or_read_only_costs_no_refresh_token(
    refresher: Command, refusal: str, command: str
) -> None:
    """If it failed, a disk without inodes, or a read-only one, would cost the refresh token of every due grant."""
    need(no_mounts())
    fillers = [refresher.state / f"grants/.filler-{number}" for number in range(64)]
    with TokenServer(lambda _: 3600) as server, mounted(refresher.state, "size=1m,nr_inodes=24"):
        refresher.bring("linear", server.grant("client"))
        with pytest.raises(OSError, match="No space"):
            list(map(Path.touch, fillers))
        if refusal == "one inode":
            fillers[0].unlink()  # enough for the reserved space, but not for the intent
        if refusal == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(refresher.state)], check=True)
        process = refresher.start(command)
        if command == "run-once":
            done = refresher.finish(process)
            assert (done.code, len(done.stderr.splitlines())) == (4, 1), done.stderr
            assert "storage_failed" in done.stderr
        else:
            heard(process, "storage_failed")
        assert not server.asked
        assert refresher.leftovers() == [filler.name for filler in sorted(fillers) if filler.exists()]
        if refusal == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(refresher.state)], check=True)
        for filler in fillers:
            filler.unlink(missing_ok=True)
        if command == "run":
            wait_until(lambda: refresher.grant("linear").generation == 1, "the grant rotates")
            process.send_signal(signal.SIGTERM)
            assert refresher.finish(process).code == 0
        else:
            assert refresher("run-once").code == 0
        assert len(server.asked["client"]) == 1


# --- during the exchange ------------------------------------------------------------------------------------------


def test_a_disk_that_fills_during_the_exchange_still_has_the_reserved_space(refresher: Command) -> None:
    """If it failed, a disk that fills during an exchange would cost a refresh token (I6)."""
    need(no_mounts())
    tokens = refresher.state / "tokens/linear.json"

    def fill() -> None:
        with pytest.raises(OSError, match="No space"):
            (refresher.state / "filler").write_bytes(bytes(1024 * 1024))

    with TokenServer(lambda _: 3600, fill) as server, mounted(refresher.state, "size=256k"):
        refresher.bring("linear", server.grant("client"))
        done = refresher("run-once", "--json")
        assert refresher.grant("linear").generation == 1
        assert done.outcome in ("rotated", "storage_failed")
        assert (done.code == 0) is tokens.exists()
        (refresher.state / "filler").unlink()
        assert refresher("run-once").code == 0
        assert refresher.token("linear").generation == 1
        assert refresher.leftovers() == []
        assert len(server.asked["client"]) == 1


# --- after the exchange -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["size=16k", "nr_inodes=2", "ro"])
def test_a_rotation_that_cannot_be_published_is_saved_and_published_later(refresher: Command, options: str) -> None:
    """If it failed, each run with a full disk for tokens would spend another refresh token."""
    need(no_mounts())
    refresher.tokens = refresher.home / "tokens"
    refresher.environment["REFRESHER_TOKENS_DIR"] = str(refresher.tokens)
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        with mounted(refresher.tokens, options):
            if options == "size=16k":
                with pytest.raises(OSError, match="No space"):
                    (refresher.tokens / "filler").write_bytes(bytes(65536))
            elif options == "nr_inodes=2":
                (refresher.tokens / "filler").touch()
            for number in range(2):
                done = refresher("run-once", "--json")
                assert (done.code, done.outcome) == (4, "storage_failed"), number
                assert "saved, but cannot publish" in done.results["linear"]["detail"]
            assert [path.name for path in refresher.tokens.iterdir()] == ([] if options == "ro" else ["filler"])
        done = refresher("run-once", "--json")
        assert (done.code, refresher.token("linear").generation) == (0, 1)
        assert len(server.asked["client"]) == 1
