"""A login or a logout that is killed, hears a signal, or finds the disk full: there is the old grant, or the new one."""

import fcntl
import os
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
from tests.support.kills import CHANGES, attached, child, sweep, sweep_of
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.parts import injecting, mounted, no_mounts, no_strace
from tests.support.person import Person
from tests.support.vault import Vault

STORING = (*CHANGES, "fchmod", "flock")
ASKING = ("connect", "sendto", "recvfrom")


class Place(NamedTuple):
    """An MCP server, the authorization server before it, and the command that logs in there."""

    oidc: OIDC
    mcp: MCPServerProcess
    refresher: Command

    def bring(self) -> Grant:
        """Store the grant of an earlier login."""
        fields = self.oidc.mint(resource=self.mcp.url, live=True)
        more = {"server_url": self.mcp.url, "revocation_endpoint": self.oidc.endpoints["revocation_endpoint"]}
        return self.refresher.bring("linear", fields | more, replace=True)

    def lives(self, grant: Grant) -> bool:
        """Whether a grant's refresh token is good."""
        token = grant.refresh_token
        return token is not None and bool(self.oidc.introspect(token.reveal())["active"])

    def is_new(self, before: Grant, here: object) -> bool:
        """Insist that one login, the old or the new, is whole, works and leaves nothing about; return which."""
        done = self.refresher("run-once", "--force", "--json")
        if done.outcome == "adopted":
            # It was saved and not in its place yet.
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


@pytest.mark.parametrize(("calls", "options"), [(STORING, ["--no-verify"]), (ASKING, [])], ids=["storing", "asking"])
def test_a_login_that_is_killed_after_the_redirect_leaves_the_old_grant_or_the_new(
    place: Place, calls: Sequence[str], options: list[str]
) -> None:
    """If it failed, a crash at the end of a login would cost the one that had worked (I4, I6)."""
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
    assert seen == ({True, False} if calls == STORING else {False})


def test_a_login_that_is_killed_before_the_redirect_changes_nothing(place: Place) -> None:
    """If it failed, a login that nobody ended would cost the one that had worked (I6)."""
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
            os.kill(child(process), signal.SIGKILL)
        assert place.refresher.finish(process).code in (-9, 137)
        assert record.read_bytes() == stored
        if waits:
            break
    else:
        pytest.fail("it connects without end")
    assert number > 3, "it discovers and registers nothing"
    assert not place.is_new(before, "killed at the browser")


def test_a_logout_that_is_killed_can_be_repeated_and_sends_no_ended_token_again(place: Place) -> None:
    """If it failed, a crash would leave a login that looks alive and is dead, or half a record (I4)."""
    need(no_strace())
    before: list[Grant] = []

    def prepare() -> None:
        before.append(place.bring())

    refresher, seen = place.refresher, set()
    for point in sweep(refresher, prepare, ("logout", "linear"), calls=(*CHANGES, "flock", *ASKING)):
        here = f"killed at {point}"
        record = refresher.record("linear")
        ended = isinstance(record, Grant) and not place.lives(record)
        done = refresher("run-once", "--force", "--json")
        if isinstance(refresher.record("linear"), Tombstone):
            # Also one that was saved and not in its place yet.
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
    """If it failed, whoever thinks better of a login would lose the one that works."""
    before = place.bring()
    stored = place.refresher.directories.record("linear").read_bytes()
    login = Entering(place.refresher, place.mcp.url)
    login.process.send_signal(number)
    assert login.finish().code in (-number, 128 + number)
    assert place.refresher.directories.record("linear").read_bytes() == stored
    assert not place.is_new(before, number)


@contextmanager
def exchanging(place: Place) -> Iterator[Callable[[], bool]]:
    """Hold the login in mid exchange; yields whether it is there."""
    before = len(place.oidc.requests())
    place.oidc.script(hold=True)
    yield lambda: len(place.oidc.requests()) > before
    place.oidc.release()


@contextmanager
def storing(place: Place) -> Iterator[Callable[[], bool]]:
    """Hold the login where it waits for the lock of its name; yields whether it is there."""
    path = place.refresher.directories.lock("linear")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        first = place.refresher.directories.import_lock
        yield lambda: is_locked(first)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock."""
    with path.open() as tried:
        try:
            fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [exchanging, storing], ids=["exchanging", "storing"])
def test_a_login_that_has_its_redirect_is_finished_whatever_signal_comes(
    place: Place, step: Callable[[Place], AbstractContextManager[Callable[[], bool]]], number: signal.Signals
) -> None:
    """If it failed, Ctrl-C a moment too late would throw away what a person had just agreed to."""
    before = place.bring()
    with step(place) as is_there:
        login = Entering(place.refresher, place.mcp.url)
        login.send_person()
        wait_until(is_there, "the login is at that step")
        login.process.send_signal(number)
        heard(login.process, "completes first")
        time.sleep(0.2)  # it looks at the lock twenty times a second, and gives up at the next look or not at all
    done = login.finish()
    assert done.code == 128 + number, done.stderr
    assert "logged in: linear" in done.stdout
    assert "You are logged in" in login.page
    assert place.is_new(before, number)


def test_a_signal_ends_a_login_whose_client_is_forgotten(place: Place) -> None:
    """If it failed, whoever wants to stop would be asked to log in once more."""
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
def test_a_signal_while_a_device_is_waited_for_costs_no_tokens_that_are_on_their_way(
    place: Place, answered: bool
) -> None:
    """If it failed, Ctrl-C would throw away what a person has just approved, or be heard by nobody."""
    before = place.bring()
    process = place.refresher.start("login", "linear", place.mcp.url, "--device")
    code = heard(process, "enter the code:")[-1].split()[-1]
    heard(process, "Waiting for you")
    asked = len(place.oidc.requests())
    if answered:
        wait_until(lambda: [entry["status"] for entry in place.oidc.requests()[asked:]] == [400], "it has polled")
        # The next poll comes when the person is done, and not while.
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


def test_a_login_that_cannot_be_stored_says_so_and_leaves_the_old_grant(place: Place) -> None:
    """If it failed, a full disk would cost the login that works, or a person would believe in one that is nowhere."""
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
