"""Which events each operation emits, and that no lock is held meanwhile."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.grants.outcome import GrantRejected, Outcome, Transient
from refresher.oauth.token_request import TokenRequestResult
from refresher.operations import import_request
from refresher.operations import rotate as rotation
from refresher.operations.events import Event
from refresher.operations.import_grant import store_grant
from refresher.operations.remove import remove
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import lock, records
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Attempt
from refresher.storage.publishing import Publisher
from tests.support.fake_state import directories, put
from tests.support.samples import ISSUED, grant

Answer = Callable[[Outcome], None]

IMPORT = {
    "token_endpoint": "https://as.example/token",
    "client_id": "client",
    "refresh_token": "a-refresh-token",
    "server_url": "https://mcp.example/mcp?key=secret-in-a-query",
}


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with a published grant whose access token is live."""
    made, now = directories(tmp_path), time.time()
    live = grant(issued_at=now - 60, expires_at=now + 3540, last_rotation_at=now - 60)
    put(made.record("linear"), live)
    Publisher(made).publish(live)
    return made


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Sets the outcome of each exchange. A fake: what happens around the exchange is the subject here."""

    def use(outcome: Outcome) -> None:
        def request(_: object, *, hooks: Attempt, **__: Any) -> TokenRequestResult:
            sent: Moment = clocks.now()
            hooks.before_first_byte()
            return TokenRequestResult(outcome=outcome, sent=sent)

        monkeypatch.setattr(rotation, "request_tokens", request)

    return use


def _noting(state: Directories) -> tuple[list[Event], Callable[[Event], None]]:
    """Return a list, and an observer that takes the locks of the grant and of imports before it adds to the list."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        for path in (state.lock("linear"), state.import_lock):
            with lock.held(path, stopping=lambda: False, wait=0.0):
                pass
        events.append(event)

    return events, emit


def _rotate(state: Directories, *, force: bool = False) -> list[Event]:
    events, emit = _noting(state)
    terms = Terms(ca_file=None, stopping=lambda: False, emit=emit)
    rotate(FileStore(state), Order(name="linear", seen=3, force=force), terms)
    return events


def _kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_rotation_is_an_event(state: Directories, answer: Answer) -> None:
    """If it failed, nobody would see in the history that a grant is fresh."""
    answer(ISSUED)
    (event,) = _rotate(state, force=True)
    assert (event.kind, event.outcome, event.generation, event.demanded) == ("rotated", "rotated", 4, False)
    assert event.exchange_seconds is not None
    assert event.lock_seconds is not None
    assert event.late_seconds is None
    assert "new-" not in repr(event)


def test_the_lateness_of_a_rotation_that_is_due_is_known(state: Directories, answer: Answer) -> None:
    """If it failed, nobody could see that rotations come late."""
    answer(ISSUED)
    now = time.time()
    put(state.record("linear"), grant(issued_at=now - 3600, expires_at=now, last_rotation_at=now - 3600))
    *_, event = _rotate(state)
    assert event.late_seconds == pytest.approx(900, abs=120)


def test_a_failure_and_its_end_are_events(state: Directories, answer: Answer) -> None:
    """If it failed, nobody would see when a grant began to fail, and when it worked again."""
    answer(Transient(code="temporarily_unavailable", description="the token endpoint answered 503"))
    failed, changed = _rotate(state, force=True)
    assert (failed.kind, failed.outcome, failed.generation) == ("failed", "transient", 3)
    assert (changed.kind, changed.state_before, changed.state) == ("state_changed", "active", "failing")
    assert changed.detail == "the token endpoint answered 503"
    answer(ISSUED)
    rotated, changed = _rotate(state, force=True)
    assert rotated.kind == "rotated"
    assert (changed.state_before, changed.state, changed.detail) == ("failing", "active", "")


def test_a_grant_that_a_server_rejects_and_its_return_are_events(state: Directories, answer: Answer) -> None:
    """If it failed, the history would not say when a person had to log in again, or since when that is over."""
    answer(GrantRejected(code="invalid_grant", description="the server rejects the refresh token"))
    failed, changed = _rotate(state, force=True)
    assert (failed.kind, failed.outcome) == ("failed", "reauthorization_required")
    assert (changed.state_before, changed.state) == ("active", "reauthorization_required")
    assert "rejects the refresh token" in changed.detail
    assert _rotate(state) == [], "nothing more happens to a grant that needs a person"
    answer(ISSUED)
    rotated, changed = _rotate(state, force=True)
    assert (rotated.kind, rotated.generation) == ("rotated", 4)
    assert (changed.state_before, changed.state) == ("reauthorization_required", "active")


def test_a_demand_is_an_event_once_it_is_settled(state: Directories, answer: Answer) -> None:
    """If it failed, nobody would see which rotations agents have asked for."""
    answer(ISSUED)
    (state.demands / "linear.3").touch()
    events, emit = _noting(state)
    terms = Terms(ca_file=None, stopping=lambda: False, emit=emit)
    rotate(FileStore(state), Order(name="linear", seen=3, demanded=frozenset({3})), terms)
    demanded, rotated = events
    assert (demanded.kind, demanded.generation) == ("demanded", 3)
    assert (rotated.kind, rotated.demanded) == ("rotated", True)


def test_a_publication_again_is_an_event(state: Directories) -> None:
    """If it failed, nobody would see that somebody removes token files, or that agents do not see the newest."""
    state.token("linear").unlink()
    assert _kinds(_rotate(state)) == ["published"]
    assert _kinds(_rotate(state)) == []
    (state.demands / "linear.2").touch()
    assert _kinds(_rotate(state)) == ["demanded", "published"]


def test_a_publication_that_fails_is_an_event(state: Directories) -> None:
    """If it failed, the history would say nothing while no agent gets a token."""
    state.token("linear").unlink()
    state.token("linear").mkdir()
    (event,) = _rotate(state)
    assert (event.kind, event.outcome, event.generation) == ("failed", "storage_failed", 3)


def test_failures_without_an_exchange_are_events(state: Directories) -> None:
    """If it failed, a lock that is never released or a damaged record would not be in the history."""
    events: list[Event] = []
    terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.0, emit=events.append)
    with lock.held(state.lock("linear"), stopping=lambda: False):
        rotate(FileStore(state), Order(name="linear", seen=3, force=True), terms)
    state.record("linear").write_text("no record")
    rotate(FileStore(state), Order(name="linear", seen=3, force=True), terms)
    assert [event.outcome for event in events] == ["lock_busy", "invalid_grant_file"]


def test_each_finding_of_a_recovery_is_an_event(state: Directories) -> None:
    """If it failed, a generation that a killed process began would look lost."""
    now = time.time()
    stored = records.load(state, "linear")
    put(state.next("linear"), grant(generation=4, issued_at=now, expires_at=now + 3600), stored.checksum)
    state.intent("linear").write_text("damaged")
    recovered = [event for event in _rotate(state) if event.kind == "recovered"]
    assert [event.detail.partition(" ")[0] for event in recovered] == ["the", "adopted"]
    assert recovered[-1].generation == 4


def test_an_attempt_that_was_killed_after_its_request_is_an_event(state: Directories) -> None:
    """If it failed, nobody would see that a kill has put a login in doubt."""
    attempt = Attempt(state, "linear", records.load(state, "linear"))
    attempt.reserve(grant(), clocks.now())
    attempt.before_first_byte()
    recovered, published, changed = _rotate(state)
    assert (recovered.kind, recovered.generation) == ("recovered", 3)
    assert published.kind == "published", "the state that agents see"
    assert "cut off after its request" in recovered.detail
    assert (changed.kind, changed.state_before, changed.state) == ("state_changed", "active", "failing")
    assert _rotate(state) == []


def test_an_attempt_that_was_killed_before_its_request_is_no_event(state: Directories) -> None:
    """If it failed, the history would show an alarm where nothing was sent."""
    Attempt(state, "linear", records.load(state, "linear")).reserve(grant(), clocks.now())
    assert _rotate(state) == []
    assert not state.intent("linear").exists()


def test_a_restored_backup_is_an_event_with_the_generation_of_the_readers(state: Directories) -> None:
    """If it failed, the history would not say why the login of a restored backup is in doubt."""
    now = time.time()
    Publisher(state).publish(grant(generation=7, issued_at=now, expires_at=now + 3600))
    put(state.record("linear"), grant(issued_at=now - 90, expires_at=now + 3510, last_rotation_at=now - 90))
    recovered, *rest = _rotate(state)
    assert (recovered.kind, recovered.generation) == ("recovered", 7)
    assert "restored from a backup" in recovered.detail
    assert [(event.state_before, event.state) for event in rest if event.kind == "state_changed"] == [
        ("active", "failing")
    ]


def test_what_a_recovery_found_is_emitted_also_if_the_operation_then_fails(state: Directories) -> None:
    """If it failed, an import that is refused would hide that it has recovered a grant."""
    events, emit = _noting(state)
    state.intent("linear").write_text("damaged")
    parsed = import_request.parse("linear", json.dumps(IMPORT).encode(), clocks.now())
    with pytest.raises(Exception, match="--replace"):
        store_grant(FileStore(state), parsed, replace=False, if_absent=False, stopping=lambda: False, emit=emit)
    assert _kinds(events) == ["recovered", "recovered"], "a doubt, and a file that was set aside"


def test_the_end_of_a_login_is_an_event_once(state: Directories) -> None:
    """If it failed, nobody would learn from a hook or the history that a login ends, or learn it at each run."""
    now = time.time()
    put(
        state.record("linear"),
        grant(
            issued_at=now,
            expires_at=now + 3600,
            last_rotation_at=now,
            authorized_at=now - 30 * 86400,
            login_ends_at=now + 86400 / 2,
        ),
    )
    assert _kinds(_rotate(state)).count("login_ending") == 1
    assert "login_ending" not in _kinds(_rotate(state))


@pytest.mark.parametrize(("just_issued", "kind"), [(False, "imported"), (True, "logged_in")])
def test_an_import_a_login_and_a_removal_are_events(state: Directories, just_issued: bool, kind: str) -> None:
    """If it failed, the history would not say who replaced or removed a grant, or would hold a key of an address."""
    events, emit = _noting(state)
    parsed = import_request.parse("linear", json.dumps(IMPORT).encode(), clocks.now())
    store_grant(
        FileStore(state),
        parsed,
        replace=True,
        if_absent=False,
        stopping=lambda: False,
        just_issued=just_issued,
        emit=emit,
    )
    remove(FileStore(state), "linear", stopping=lambda: False, emit=emit)
    assert (events[0].kind, events[0].generation) == (kind, 4)
    assert events[-1].kind == "removed"
    assert "secret-in-a-query" not in repr(events)
