"""Login and logout that are killed, get a signal, or find a full disk: the old grant or the new one is there."""

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
from tests.support.entering import Entering
from tests.support.kills import CHANGES, NETWORK, attached, sweep, sweep_of
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.parts import injecting, mounted, no_mounts, no_strace
from tests.support.person import Person
from tests.support.vault import Vault


class Place(NamedTuple):
    """An MCP server, the authorization server before it, and the command that logs in there."""

    oidc: OIDC
    mcp: MCPServerProcess
    refresher: Command

    def bring(self) -> Grant:
        """Import the grant of an earlier login."""
        fields = self.oidc.mint(resource=self.mcp.url, live=True)
        more = {"server_url": self.mcp.url, "revocation_endpoint": self.oidc.endpoints["revocation_endpoint"]}
        return self.refresher.bring("linear", fields | more, replace=True)

    def lives(self, grant: Grant) -> bool:
        """Whether a grant's refresh token is valid."""
        token = grant.refresh_token
        return token is not None and bool(self.oidc.introspect(token.reveal())["active"])

    def is_new(self, before: Grant, here: object) -> bool:
        """Check that the old or the new grant is complete and works; return whether it is the new one."""
        done = self.refresher("run-once", "--force", "--json")
        if done.outcome == "adopted":
            # The answer was saved, and the record not yet replaced.
            done = self.refresher("run-once", "--force", "--json")
        assert (done.code, done.outcome) == (0, "rotated"), f"{here}: {done.stdout}"
        after = self.refresher.grant("linear")
        token = self.refresher.token("linear")
        assert (token.generation, token.state) == (after.generation, "active"), here
        assert self.oidc.introspect(token.access_token)["active"], here
        assert self.refresher.leftovers() == [], here
        tokens = self.refresher.directories.tokens
        assert [*tokens.iterdir()] == [self.refresher.directories.token("linear")], here
        assert after.generation > before.generation
        assert (self.oidc.log()["reused"], self.oidc.log()["presented_twice"]) == (0, 0), here
        return after.grant_id != before.grant_id


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[OIDC, MCPServerProcess]]:
    need(oidc_module.missing())
    with OIDC(Vault()) as oidc, MCPServerProcess(oidc) as mcp:
        yield oidc, mcp


@pytest.fixture
def place(refresher: Command, servers: tuple[OIDC, MCPServerProcess]) -> Place:
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")
    return Place(*servers, refresher)


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "options"), [(CHANGES, ["--no-verify"]), (NETWORK, [])], ids=["storing", "asking"])
def test_a_login_killed_after_the_redirect_leaves_the_old_grant_or_the_new_one(
    place: Place, calls: Sequence[str], options: list[str]
) -> None:
    """If it failed, a crash at the end of a login would destroy the earlier grant (I4, I6)."""
    need(no_strace())
    before: list[Grant] = []

    def run(tracing: Sequence[str]) -> int:
        before.append(place.bring())
        login = Entering(place.refresher, place.mcp.url, *options)
        with attached(login.process, calls, tracing):
            login.follow()
            return login.finish().code

    seen = set()
    for point in sweep_of(place.refresher.home / "trace", run):
        seen.add(place.is_new(before[-1], f"killed at {point}"))
    assert seen == ({True, False} if calls == CHANGES else {False})


def test_a_login_killed_before_the_redirect_changes_nothing(place: Place) -> None:
    """If it failed, an unfinished login would destroy the earlier grant (I6)."""
    need(no_strace())
    before = place.bring()
    record = place.refresher.directories.record("linear")
    stored = record.read_bytes()
    for number in range(1, 10):
        kill = injecting("connect", f"signal=KILL:when={number}")
        process = place.refresher.start("login", "linear", place.mcp.url, "--no-browser", "--new-client", prefix=kill)
        assert process.stderr is not None
        waits = any("To log in" in line for line in process.stderr)
        if waits:
            process.kill()
        assert place.refresher.finish(process).code in (-9, 137)
        assert record.read_bytes() == stored
        if waits:
            break
    else:
        pytest.fail("it connects for ever")
    assert number > 3, "it does not discover or register"
    assert not place.is_new(before, "killed at the browser")


def test_a_killed_logout_can_be_repeated_and_sends_no_revoked_token_again(place: Place) -> None:
    """If it failed, a crash would leave a revoked grant that looks active, or an incomplete record (I4)."""
    need(no_strace())
    before: list[Grant] = []

    def prepare() -> None:
        before.append(place.bring())

    refresher, seen = place.refresher, set()
    for point in sweep(refresher, prepare, ("logout", "linear"), calls=(*CHANGES, *NETWORK)):
        here = f"killed at {point}"
        record = refresher.record("linear")
        ended = isinstance(record, Grant) and not place.lives(record)
        done = refresher("run-once", "--force", "--json")
        if isinstance(refresher.record("linear"), Tombstone):
            # Also a tombstone that was saved and has not replaced the record yet.
            seen.add("removed")
            assert (done.code, done.results) == (0, {}), here
        else:
            seen.add("ended" if ended else "alive")
            said = (3, "reauthorization_required") if ended else (0, "rotated")
            assert (done.code, done.outcome) == said, here
            asked = len(place.oidc.requests())
            assert refresher("run-once").code == (3 if ended else 0), here
            assert len(place.oidc.requests()) == asked, f"{here}, it sent an ended token twice"
            assert refresher("logout", "linear").code == 0, here
        assert isinstance(refresher.record("linear"), Tombstone)
        assert refresher.token("linear").state == "removed", here
        assert refresher.leftovers() == [], here
    assert seen == {"alive", "ended", "removed"}
    assert (place.oidc.log()["reused"], place.oidc.log()["presented_twice"]) == (0, 0)


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_redirect_changes_nothing(place: Place, number: signal.Signals) -> None:
    """If it failed, Ctrl-C during a login would destroy the earlier grant."""
    before = place.bring()
    stored = place.refresher.directories.record("linear").read_bytes()
    login = Entering(place.refresher, place.mcp.url)
    login.process.send_signal(number)
    assert login.finish().code in (-number, 128 + number)
    assert place.refresher.directories.record("linear").read_bytes() == stored
    assert not place.is_new(before, number)


@contextmanager
def exchanging(place: Place) -> Iterator[Callable[[], bool]]:
    """Hold the login during its token request; yield whether it has arrived there."""
    before = len(place.oidc.requests())
    place.oidc.script(hold=True)
    yield lambda: len(place.oidc.requests()) > before
    place.oidc.release()


@contextmanager
def storing(place: Place) -> Iterator[Callable[[], bool]]:
    """Hold the login while it waits for the lock of its name; yield whether it has arrived there."""
    path = place.refresher.directories.lock("linear")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        first = place.refresher.directories.import_lock
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
    place: Place, step: Callable[[Place], AbstractContextManager[Callable[[], bool]]], number: signal.Signals
) -> None:
    """If it failed, a late Ctrl-C would discard tokens that the person has just approved."""
    before = place.bring()
    with step(place) as is_there:
        login = Entering(place.refresher, place.mcp.url)
        login.send_person()
        wait_until(is_there, "the login is at that step")
        login.process.send_signal(number)
        heard(login.process, "completes first")
        time.sleep(0.2)  # it tries the lock twenty times a second, so by now it has ended or will not
    done = login.finish()
    assert done.code == 128 + number, done.stderr
    assert "logged in: linear" in done.stdout
    assert "You are logged in" in login.page
    assert place.is_new(before, number)


def test_a_signal_ends_a_login_whose_client_is_unknown(place: Place) -> None:
    """If it failed, a person who stops the login would be asked to log in again."""
    before = place.bring()
    first = Entering(place.refresher, place.mcp.url, "--new-client")
    first.follow()
    assert first.finish().code == 0
    asked = len(place.oidc.requests())
    place.oidc.script(hold=True, status=401, body={"error": "invalid_client"})
    login = Entering(place.refresher, place.mcp.url)
    login.send_person()
    wait_until(lambda: len(place.oidc.requests()) > asked, "it exchanges the code")
    login.process.send_signal(signal.SIGINT)
    heard(login.process, "completes first")
    place.oidc.release()
    done = login.finish()
    assert (done.code, "invalid_client" in done.stderr) == (130, True), done.stderr
    assert place.is_new(before, "the first login")


@pytest.mark.parametrize("answered", [True, False], ids=["approved", "waiting"])
def test_a_signal_during_a_login_by_device_loses_no_tokens(place: Place, answered: bool) -> None:
    """If it failed, Ctrl-C would discard tokens that the person has just approved, or would be ignored."""
    before = place.bring()
    process = place.refresher.start("login", "linear", place.mcp.url, "--device")
    code = heard(process, "enter the code:")[-1].split()[-1]
    heard(process, "Waiting for you")
    asked = len(place.oidc.requests())
    if answered:
        wait_until(lambda: [entry["status"] for entry in place.oidc.requests()[asked:]] == [400], "it has polled")
        # The next poll must come after the person has approved, not before.
        process.send_signal(signal.SIGSTOP)
        place.oidc.script(hold=True)
        Person(code=code).open(f"{place.oidc.endpoints['issuer']}/device")
        asked = len(place.oidc.requests())
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(place.oidc.requests()) > asked, "it polls again")
    process.send_signal(signal.SIGTERM)
    heard(process, "completes first")
    place.oidc.release()
    done = place.refresher.finish(process)
    assert done.code == 128 + signal.SIGTERM, done.stderr
    assert ("logged in: linear" in done.stdout) is answered
    assert place.is_new(before, "a signal") is answered


# --- a full disk --------------------------------------------------------------------------------------------------


def test_a_login_on_a_full_disk_fails_and_leaves_the_old_grant(place: Place) -> None:
    """If it failed, a full disk would destroy the earlier grant, or login would report success."""
    need(no_mounts())
    refresher = place.refresher
    with mounted(refresher.state, "size=256k"):
        before = place.bring()
        login = Entering(refresher, place.mcp.url)
        with pytest.raises(OSError, match="No space"):
            (refresher.state / "filler").write_bytes(bytes(512 * 1024))
        login.follow()
        done = login.finish()
        assert done.code == 4, done.stderr
        assert without_times(done.stderr).strip().splitlines()[-1].startswith("refresher: cannot write")
        assert "No space" in done.stderr
        assert "The login failed" in login.page
        (refresher.state / "filler").unlink()
        assert not place.is_new(before, "a full disk")
