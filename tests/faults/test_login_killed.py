"""Login and logout that are killed, get a signal, or find a full disk: the old grant or the new one remains."""

import fcntl
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from refresher.grants.record import Grant, Tombstone
from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.command import Command, wait_until, without_times
from tests.support.daemon import heard
from tests.support.kills import CHANGES, NETWORK, attached, sweep, sweep_of
from tests.support.login_process import LoginProcess
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.parts import injecting, mounted, no_mounts, no_strace
from tests.support.person import Person
from tests.support.vault import Vault


class Site(NamedTuple):
    """An MCP server, the authorization server before it, and the command that logs in there."""

    oidc: OIDC
    mcp: MCPServerProcess
    refresher: Command

    def import_grant(self) -> Grant:
        """Import the grant of an earlier login."""
        fields = self.oidc.mint(resource=self.mcp.url, live=True)
        more = {"server_url": self.mcp.url, "revocation_endpoint": self.oidc.endpoints["revocation_endpoint"]}
        return self.refresher.bring("linear", fields | more, replace=True)

    def is_valid(self, grant: Grant) -> bool:
        """Whether a grant's refresh token is valid."""
        token = grant.refresh_token
        return token is not None and bool(self.oidc.introspect(token.reveal())["active"])

    def is_new(self, before: Grant, where: object) -> bool:
        """Check that the old or the new grant is complete and works; return whether it is the new one."""
        done = self.refresher("run-once", "--force", "--json")
        if done.outcome == "adopted":
            # The answer was saved, and the record not yet replaced.
            done = self.refresher("run-once", "--force", "--json")
        assert (done.code, done.outcome) == (0, "rotated"), f"{where}: {done.stdout}"
        after = self.refresher.grant("linear")
        token = self.refresher.token("linear")
        assert (token.generation, token.state) == (after.generation, "active"), where
        assert self.oidc.introspect(token.access_token)["active"], where
        assert self.refresher.leftovers() == [], where
        tokens = self.refresher.directories.tokens
        assert [*tokens.iterdir()] == [self.refresher.directories.token("linear")], where
        assert after.generation > before.generation
        assert (self.oidc.log()["reused"], self.oidc.log()["presented_twice"]) == (0, 0), where
        return after.grant_id != before.grant_id


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[OIDC, MCPServerProcess]]:
    need(oidc_module.missing())
    with OIDC(Vault()) as oidc, MCPServerProcess(oidc) as mcp:
        yield oidc, mcp


@pytest.fixture
def site(refresher: Command, servers: tuple[OIDC, MCPServerProcess]) -> Site:
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")
    # As in a sweep of rotations: the thread of the history makes system calls at any time.
    refresher.environment["REFRESHER_HISTORY_DAYS"] = "0"
    return Site(*servers, refresher)


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "options"), [(CHANGES, ["--no-verify"]), (NETWORK, [])], ids=["storing", "requesting"]
)
def test_a_login_killed_after_the_redirect_leaves_the_old_grant_or_the_new_one(
    site: Site, calls: Sequence[str], options: list[str]
) -> None:
    """If it failed, a crash at the end of a login would destroy the earlier grant (I4, I6)."""
    need(no_strace())
    before: list[Grant] = []

    def run(tracing: Sequence[str]) -> int:
        before.append(site.import_grant())
        login = LoginProcess(site.refresher, site.mcp.url, *options)
        with attached(login.process, calls, tracing):
            login.follow()
            return login.finish().code

    seen = set()
    for point in sweep_of(site.refresher.home / "trace", run):
        seen.add(site.is_new(before[-1], f"killed at {point}"))
    assert seen == ({True, False} if calls == CHANGES else {False})


def test_a_login_killed_before_the_redirect_changes_nothing(site: Site) -> None:
    """If it failed, an unfinished login would destroy the earlier grant (I6)."""
    need(no_strace())
    before = site.import_grant()
    record = site.refresher.directories.record("linear")
    stored = record.read_bytes()
    for number in range(1, 10):
        kill = injecting("connect", f"signal=KILL:when={number}")
        process = site.refresher.start("login", "linear", site.mcp.url, "--no-browser", "--new-client", prefix=kill)
        assert process.stderr is not None
        at_browser = any("To log in" in line for line in process.stderr)
        if at_browser:
            process.kill()
        assert site.refresher.finish(process).code in (-9, 137)
        assert record.read_bytes() == stored
        if at_browser:
            break
    else:
        pytest.fail("the login makes too many connections")
    assert number > 3, "the login sends no discovery or registration"
    assert not site.is_new(before, "killed at the browser")


def test_a_killed_logout_can_be_repeated_and_sends_no_revoked_token_again(site: Site) -> None:
    """If it failed, a crash would leave a revoked grant that looks active, or an incomplete record (I4)."""
    need(no_strace())
    before: list[Grant] = []

    def prepare() -> None:
        before.append(site.import_grant())

    refresher, seen = site.refresher, set()
    for point in sweep(refresher, prepare, ("logout", "linear"), calls=(*CHANGES, *NETWORK)):
        where = f"killed at {point}"
        record = refresher.record("linear")
        ended = isinstance(record, Grant) and not site.is_valid(record)
        done = refresher("run-once", "--force", "--json")
        if isinstance(refresher.record("linear"), Tombstone):
            # Also a tombstone that was saved and has not replaced the record yet.
            seen.add("removed")
            assert (done.code, done.results) == (0, {}), where
        else:
            seen.add("ended" if ended else "alive")
            expected = (3, "reauthorization_required") if ended else (0, "rotated")
            assert (done.code, done.outcome) == expected, where
            requests_before = len(site.oidc.requests())
            assert refresher("run-once").code == (3 if ended else 0), where
            assert len(site.oidc.requests()) == requests_before, (
                f"{where}, a token request for an ended grant was sent twice"
            )
            assert refresher("logout", "linear").code == 0, where
        assert isinstance(refresher.record("linear"), Tombstone)
        assert refresher.token("linear").state == "removed", where
        assert refresher.leftovers() == [], where
    assert seen == {"alive", "ended", "removed"}
    assert (site.oidc.log()["reused"], site.oidc.log()["presented_twice"]) == (0, 0)


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_redirect_changes_nothing(site: Site, number: signal.Signals) -> None:
    """If it failed, Ctrl-C during a login would destroy the earlier grant."""
    before = site.import_grant()
    stored = site.refresher.directories.record("linear").read_bytes()
    login = LoginProcess(site.refresher, site.mcp.url)
    login.process.send_signal(number)
    assert login.finish().code in (-number, 128 + number)
    assert site.refresher.directories.record("linear").read_bytes() == stored
    assert not site.is_new(before, number)


@contextmanager
def exchanging(site: Site) -> Iterator[Callable[[], bool]]:
    """Hold the login during its token request; yield whether it has arrived there."""
    before = len(site.oidc.requests())
    site.oidc.script(hold=True)
    yield lambda: len(site.oidc.requests()) > before
    site.oidc.release()


@contextmanager
def storing(site: Site) -> Iterator[Callable[[], bool]]:
    """Hold the login while it waits for the lock of its name; yield whether it has arrived there."""
    path = site.refresher.directories.lock("linear")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        first = site.refresher.directories.import_lock
        yield lambda: is_locked(first)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    with path.open() as tried:
        try:
            fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [exchanging, storing], ids=["exchanging", "storing"])
def test_a_signal_after_the_redirect_does_not_stop_the_login(
    site: Site, step: Callable[[Site], AbstractContextManager[Callable[[], bool]]], number: signal.Signals
) -> None:
    """If it failed, a late Ctrl-C would discard tokens that the person has just approved."""
    before = site.import_grant()
    with step(site) as has_arrived:
        login = LoginProcess(site.refresher, site.mcp.url)
        login.send_person()
        wait_until(has_arrived, "the login is at that step")
        login.process.send_signal(number)
        heard(login.process, "completes first")
        time.sleep(0.2)  # it tries the lock 20 times a second; if the signal ends it, it has ended by now
    done = login.finish()
    assert done.code == 128 + number, done.stderr
    assert "logged in: linear" in done.stdout
    assert "You are logged in" in login.page
    assert site.is_new(before, number)


def test_a_signal_ends_a_login_whose_client_is_unknown(site: Site) -> None:
    """If it failed, a person who stops a login would have to log in again."""
    before = site.import_grant()
    first = LoginProcess(site.refresher, site.mcp.url, "--new-client")
    first.follow()
    assert first.finish().code == 0
    requests_before = len(site.oidc.requests())
    site.oidc.script(hold=True, status=401, body={"error": "invalid_client"})
    login = LoginProcess(site.refresher, site.mcp.url)
    login.send_person()
    wait_until(lambda: len(site.oidc.requests()) > requests_before, "the login exchanges the code")
    login.process.send_signal(signal.SIGINT)
    heard(login.process, "completes first")
    site.oidc.release()
    done = login.finish()
    assert (done.code, "invalid_client" in done.stderr) == (130, True), done.stderr
    assert site.is_new(before, "the first login")


@pytest.mark.parametrize("answered", [True, False], ids=["approved", "waiting"])
def test_a_signal_during_a_login_by_device_loses_no_tokens(site: Site, answered: bool) -> None:
    """If it failed, Ctrl-C would discard tokens that the person has just approved, or would be ignored."""
    before = site.import_grant()
    process = site.refresher.start("login", "linear", site.mcp.url, "--device")
    code = heard(process, "enter the code:")[-1].split()[-1]
    heard(process, "Waiting for you")
    requests_before = len(site.oidc.requests())
    if answered:
        wait_until(
            lambda: [entry["status"] for entry in site.oidc.requests()[requests_before:]][:1] == [400],
            "the login polls",
        )
        # The next poll must come after the person has approved, not before.
        process.send_signal(signal.SIGSTOP)
        site.oidc.script(hold=True)
        Person(code=code).open(f"{site.oidc.endpoints['issuer']}/device")
        requests_before = len(site.oidc.requests())
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(site.oidc.requests()) > requests_before, "the login polls again")
    process.send_signal(signal.SIGTERM)
    heard(process, "completes first")
    site.oidc.release()
    done = site.refresher.finish(process)
    assert done.code == 128 + signal.SIGTERM, done.stderr
    assert ("logged in: linear" in done.stdout) is answered
    assert site.is_new(before, "a signal") is answered


# --- a full disk --------------------------------------------------------------------------------------------------


def test_a_login_on_a_full_disk_fails_and_leaves_the_old_grant(site: Site) -> None:
    """If it failed, a full disk would destroy the earlier grant, or login would report success."""
    need(no_mounts())
    refresher = site.refresher
    with mounted(refresher.state, "size=256k"):
        before = site.import_grant()
        login = LoginProcess(refresher, site.mcp.url)
        with pytest.raises(OSError, match="No space"):
            (refresher.state / "filler").write_bytes(bytes(512 * 1024))
        login.follow()
        done = login.finish()
        assert done.code == 4, done.stderr
        assert without_times(done.stderr).strip().splitlines()[-1].startswith("refresher: cannot write")
        assert "No space" in done.stderr
        assert "The login failed" in login.page
        (refresher.state / "filler").unlink()
        assert not site.is_new(before, "a full disk")
