"""The order of the steps of a rotation, each seen from the step that depends on it."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.errors import LockBusy, StorageError
from refresher.common.secret import Secret
from refresher.grants.outcome import GrantRejected
from refresher.grants.record import Grant, Login, Record
from refresher.oauth.token_request import TokenRequestResult
from refresher.operations import rotate as rotation
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import lock, records
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Attempt
from refresher.storage.publishing import Publisher, read_published
from tests.support.fake_state import directories, put
from tests.support.samples import ISSUED, grant

ANSWER = '{"access_token": "new-access", "refresh_token": "new-refresh"}'


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with a grant whose access token is live."""
    made, now = directories(tmp_path), time.time()
    put(made.record("linear"), grant(issued_at=now, expires_at=now + 3600, last_rotation_at=now - 60))
    return made


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that issues new tokens. A fake: the steps around the exchange are the subject here."""

    def request(grant: Grant, *, hooks: Attempt, **_: Any) -> TokenRequestResult:
        sent = clocks.now()
        hooks.before_first_byte()
        return TokenRequestResult(outcome=ISSUED, sent=sent, raw=Secret(ANSWER))

    monkeypatch.setattr(rotation, "request_tokens", request)


def _rotate(state: Directories, *, force: bool = False) -> Result:
    terms = Terms(ca_file=None, stopping=lambda: False)
    result = rotate(FileStore(state), Order(name="linear", seen=3, force=force), terms)
    assert result is not None
    return result


def _is_locked(state: Directories) -> bool:
    try:
        with lock.held(state.lock("linear"), stopping=lambda: False, wait=0.0):
            return False
    except LockBusy:
        return True


@pytest.mark.parametrize("force", [True, False], ids=["rotated", "not due"])
def test_tokens_are_published_under_the_lock(
    state: Directories, issued: None, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """If it failed, a slow process would publish its older record after a removal or a new login (I3)."""
    locked, publish = [], Publisher.publish

    def noted(self: Publisher, record: Record, *, again: bool = False) -> bool:
        locked.append(_is_locked(state))
        return publish(self, record, again=again)

    monkeypatch.setattr(Publisher, "publish", noted)
    assert _rotate(state, force=force).outcome == ("rotated" if force else "not_due")
    assert locked == [True]
    assert not _is_locked(state)


def test_a_demand_that_could_not_be_answered_stays(state: Directories) -> None:
    """If it failed, an agent that demands while the disk is full would wait for a token that nobody publishes."""
    demand = state.demands / "linear.2"
    demand.touch()
    state.token("linear").mkdir()
    assert _rotate(state).outcome == "storage_failed"
    assert demand.exists()
    state.token("linear").rmdir()
    assert _rotate(state).outcome == "not_due"
    assert not demand.exists()


def test_a_demand_for_the_current_token_stays_until_it_is_answered(state: Directories) -> None:
    """If it failed, a demand that comes within a second of a rotation would be lost, and its agent keep a dead token."""
    now = time.time()
    put(state.record("linear"), grant(issued_at=now, expires_at=now + 3600, last_rotation_at=now, demanded=3))
    assert _rotate(state).outcome == "not_due"
    for generation in (2, 3):
        (state.demands / f"linear.{generation}").touch()
    assert _rotate(state).outcome == "not_due"
    assert [path.name for path in state.demands.iterdir()] == ["linear.3"]


def test_a_rotation_is_newer_than_what_readers_have_of_another_login(state: Directories, issued: None) -> None:
    """If it failed, after the restore of an older login its new tokens would never reach the agents."""
    Publisher(state).publish(grant(grant_id="another", generation=7))
    assert _rotate(state, force=True).outcome == "rotated"
    published = read_published(state, "linear")
    assert published is not None
    assert (published.generation, published.access_token) == (8, "new-access")


def test_a_refused_token_that_is_not_in_the_record_any_more_ends_no_grant(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a record restored during an exchange would be overwritten with the refusal of another token (I6)."""
    now = time.time()
    other = grant(generation=5, refresh_token=Secret("another"), issued_at=now, expires_at=now + 3600)

    def refuse(grant: Grant, *, hooks: Attempt, **_: Any) -> TokenRequestResult:
        hooks.before_first_byte()
        put(state.record("linear"), other)  # a person copies a file into its place, without the lock
        sent = clocks.now()
        refusal = GrantRejected(code="invalid_grant", description="the server refuses it")
        return TokenRequestResult(outcome=refusal, sent=sent)

    monkeypatch.setattr(rotation, "request_tokens", refuse)
    assert _rotate(state, force=True).outcome != "reauthorization_required"
    assert records.load(state, "linear").record == msgspec.structs.replace(other, begun_from="")
    assert not state.candidates("linear")
    assert not state.intent("linear").exists()


def test_an_answer_that_refresher_fails_to_process_is_kept_and_leaves_a_doubt(
    state: Directories, issued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a fault of refresher would cost the only copy of a refresh token, or send a spent one (I1, I6)."""

    def fault(*_: Any, **__: Any) -> Grant:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "_after", fault)
        assert "internal error" in _rotate(state, force=True).detail
    (kept,) = state.grants.glob("linear.answer.*")
    assert kept.read_text() == ANSWER
    assert _rotate(state, force=True).outcome == "in_doubt"
    record = records.load(state, "linear").record
    assert isinstance(record, Grant)
    assert record.doubt is not None


def test_a_warning_that_cannot_be_noted_comes_once_and_changes_no_result(
    state: Directories, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a full disk would hide the end of a login, or the daemon would warn of it every second."""
    now = time.time()
    ends = {"login_ends_at": now + 1800, "authorized_at": now - 1e6}
    put(state.record("linear"), grant(issued_at=now, expires_at=now + 3600, last_rotation_at=now - 60, **ends))

    def full(*_: Any) -> None:
        raise StorageError("cannot write: no space left on device")

    monkeypatch.setattr(records, "write", full)
    terms = Terms(ca_file=None, stopping=lambda: False)
    for _ in range(3):
        result = rotate(FileStore(state), Order(name="linear", seen=3), terms)
        assert result is not None
        assert result.outcome == "not_due"
    assert [record.message.count("the server ends this login in 30 min") for record in caplog.records] == [1]


def test_a_process_warns_of_the_client_and_then_of_the_login(
    state: Directories, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a daemon that has warned of a client would say nothing when the login itself ends."""
    now = time.time()
    fields = {"issued_at": now, "expires_at": now + 3600, "last_rotation_at": now - 60, "authorized_at": now - 1e6}
    terms = Terms(ca_file=None, stopping=lambda: False)
    expiring = {"login": Login(client="registered", client_expires_at=now + 1800)}
    for ends, words in (
        (expiring, "the registration of the client expires in 30 min"),
        ({"login_ends_at": now + 1800}, "the server ends this login in 30 min"),
    ):
        caplog.clear()
        put(state.record("linear"), grant(**fields, **ends))
        rotate(FileStore(state), Order(name="linear", seen=3), terms)
        assert [words in record.message for record in caplog.records] == [True]
