"""Logins and logouts of a name that other processes rotate and import at the same time (I3)."""

import itertools
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from refresher.grants.record import Tombstone
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import running, stopped, under_way
from tests.support.login_process import LoginProcess
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.parts import injecting, no_strace
from tests.support.proxy import Fault, Proxy, closes_before, holds, passes

Start = Callable[..., OIDC]

SECONDS = 8.0
MOST_STARTS = 100


# --- many processes -----------------------------------------------------------------------------------------------


def log_in(refresher: Command, server: MCPServerProcess, *options: str) -> None:
    """Log in without verification, because the token may expire before it is tried."""
    login = LoginProcess(refresher, server.url, "--no-verify", *options)
    login.follow()
    done = login.finish()
    assert done.code == 0, done.stderr
    assert "You are logged in" in login.page


def imports(refresher: Command, server: MCPServerProcess, oidc: OIDC) -> None:
    """Import a grant from another login."""
    fields = oidc.mint(resource=server.url) | {"server_url": server.url}
    refresher.import_grant("linear", fields, "--replace")


def rotates(refresher: Command) -> None:
    """Force a rotation."""
    done = refresher("run-once", "--force", "--json")
    assert done.code == 0, done.stdout


def repeat(act: Callable[[], None], ends: float) -> int:
    """Run ``act`` at least once, and again until ``ends``; return the number of runs."""
    times = 0
    while times == 0 or (time.monotonic() < ends and times < MOST_STARTS):
        act()
        times += 1
    return times


def decreases(refresher: Command, ended: threading.Event) -> list[tuple[int, int]]:
    """Watch the published token; return each decrease of its generation."""
    seen = [0]
    while not ended.wait(0.01):
        seen.append(refresher.token("linear").generation)
    return [(before, after) for before, after in itertools.pairwise(seen) if after < before]


def test_concurrent_logins_imports_and_rotations_end_with_one_valid_grant(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a login while a daemon runs could destroy both grants (I3)."""
    oidc = own_oidc(accessTokenTtl=2)
    with MCPServerProcess(oidc) as server, ThreadPoolExecutor(8) as threads:
        imports(refresher, server, oidc)
        rotates(refresher)
        ended = threading.Event()
        watch = threads.submit(decreases, refresher, ended)
        ends = time.monotonic() + SECONDS
        with running(refresher) as daemon:
            storing = [
                threads.submit(repeat, lambda: log_in(refresher, server), ends),
                threads.submit(repeat, lambda: log_in(refresher, server, "--new-client"), ends),
                threads.submit(repeat, lambda: imports(refresher, server, oidc), ends),
            ]
            others = [threads.submit(repeat, lambda: rotates(refresher), ends) for _ in range(2)]
            try:
                stored = [work.result() for work in storing]
                for work in others:
                    work.result()
            finally:
                ended.set()
            log_lines = stopped(refresher, daemon)
        assert watch.result() == []
        rotates(refresher)
        log, grant = oidc.log(), refresher.grant("linear")
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} == {200}
    exchanges = sum(request["grant_type"] == "refresh_token" for request in log["requests"])
    assert grant.generation == exchanges + sum(stored), "an exchange or a login did not raise the generation"
    assert refresher.token("linear").generation == grant.generation
    assert oidc.introspect(refresher.refresh_token("linear"))["active"]
    assert refresher.leftovers() == []
    assert "fault" not in log_lines
    assert "failed" not in log_lines


def test_a_login_does_not_replace_a_grant_of_another_server_that_was_imported_meanwhile(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a login would destroy the refresh token of another server (I6)."""
    need(no_strace())
    oidc = own_oidc()
    spill = refresher.home / "spill"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    with MCPServerProcess(oidc) as server:
        login = LoginProcess(refresher, server.url)
        refresher.import_grant("linear", oidc.mint(live=True))
        # The newest refresh token is missing for now: a login that gives it up and is then refused would lose it.
        refresher("run-once", "--force", prefix=injecting("rename", "error=EIO"))
        moved = spill.rename(refresher.home / "moved")
        login.follow()
        done = login.finish()
        assert done.code == 2, done.stderr
        assert "linear is a grant for https://mcp.example/mcp" in done.stderr
        assert "The login failed" in login.page
        moved.rename(spill)
        assert refresher("run-once", "--json").outcome == "adopted"
        rotates(refresher)
        assert refresher.grant("linear").server_url == "https://mcp.example/mcp"


# --- logouts ------------------------------------------------------------------------------------------------------


def waiting(refresher: Command, *arguments: str) -> subprocess.Popen[str]:
    """Start a command, and return once it waits for the lock of the grant."""
    trace = refresher.home / "flocks"
    trace.unlink(missing_ok=True)
    process = refresher.start(*arguments, prefix=("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=flock"))
    wait_until(lambda: trace.exists() and "EAGAIN" in trace.read_text(), "the command waits for the lock")
    return process


def check_removed(refresher: Command, oidc: OIDC, access_token: str, generation: int) -> Tombstone:
    """Check that the grant is removed here and revoked at the server; return its tombstone."""
    record = refresher.record("linear")
    assert isinstance(record, Tombstone)
    token = refresher.token("linear")
    assert (record.generation, token.generation, token.state) == (generation, generation, "removed")
    assert not oidc.introspect(access_token)["active"]
    assert refresher.leftovers() == []
    assert (oidc.log()["reused"], oidc.log()["presented_twice"]) == (0, 0)
    return record


def test_a_logout_during_a_rotation_revokes_the_new_tokens(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a new refresh token would stay valid after logout."""
    need(no_strace())
    oidc = own_oidc()
    fields = oidc.mint(live=True) | {"revocation_endpoint": oidc.endpoints["revocation_endpoint"]}
    refresher.import_grant("linear", fields)
    oidc.script(hold=True)
    rotation = refresher.start("run-once", "--force", "--json")
    wait_until(lambda: len(oidc.requests()) == 1 and under_way(refresher), "an exchange is under way")
    logout = waiting(refresher, "logout", "linear")
    oidc.release()
    assert refresher.finish(rotation).outcome == "rotated"
    done = refresher.finish(logout)
    assert (done.code, "revoked at the server" in done.stdout) == (0, True)
    assert len(check_removed(refresher, oidc, fields["access_token"], 1).spent) == 2, "the newer token is not revoked"


def test_a_rotation_during_a_logout_sends_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, cron would send a token that is being revoked, or restore a removed grant."""
    need(no_strace())
    oidc = own_oidc()
    revoked = threading.Event()
    fields = oidc.mint(live=True)
    with Proxy(oidc.endpoints["revocation_endpoint"], holds(revoked)) as proxy:
        refresher.import_grant("linear", fields | {"revocation_endpoint": proxy.url})
        logout = refresher.start("logout", "linear")
        wait_until(lambda: proxy.answered == 1, "the server has revoked it")
        rotation = waiting(refresher, "run-once", "--force", "--json")
        revoked.set()
        assert refresher.finish(logout).code == 0
        done = refresher.finish(rotation)
    assert done.code == 0, done.stdout
    assert oidc.requests() == []
    check_removed(refresher, oidc, fields["access_token"], 0)


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ([closes_before], 4, "the grant is unchanged"),
        ([passes, closes_before], 0, "it is revoked at the server"),
    ],
    ids=["nothing revoked", "half revoked"],
)
def test_an_interrupted_revocation_says_whether_the_grant_is_unchanged(
    refresher: Command, own_oidc: Start, faults: list[Fault], code: int, words: str
) -> None:
    """If it failed, logout would keep a revoked grant, or claim that a valid one is revoked."""
    oidc = own_oidc()
    fields = oidc.mint(live=True)
    with Proxy(oidc.endpoints["revocation_endpoint"], *faults) as proxy:
        refresher.import_grant("linear", fields | {"revocation_endpoint": proxy.url})
        done = refresher("logout", "linear")
    assert (done.code, words in done.stdout + done.stderr) == (code, True), done
    if code == 0:
        check_removed(refresher, oidc, fields["access_token"], 0)
    else:
        rotates(refresher)
        assert oidc.introspect(refresher.refresh_token("linear"))["active"]
