"""Imports and removals: what they change only under a lock, and only after the record is stored."""

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from refresher.common.errors import AlreadySpent, ImportRefused, Interrupted, OtherAccount, StorageError
from refresher.common.secret import Secret
from refresher.grants.record import Account, Grant, Stored
from refresher.operations.import_grant import store_grant
from refresher.operations.remove import remove
from refresher.storage import lock, records
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.publishing import Publisher, read_published
from tests.support.fake_state import directories, put
from tests.support.samples import doubt, failure, grant

Change = Callable[[Directories], object]


def _import(state: Directories) -> object:
    now = time.time()
    new = grant(
        grant_id="another",
        generation=0,
        refresh_token=Secret("a-new-refresh-token"),
        access_token=Secret("a-new-access-token"),
        issued_at=now,
        expires_at=now + 3600,
    )
    return store_grant(FileStore(state), new, replace=True, if_absent=False, stopping=lambda: True)


def _remove(state: Directories) -> object:
    return remove(FileStore(state), "linear", stopping=lambda: True)


CHANGES = {"import": _import, "remove": _remove}


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with a grant whose token is published, and an answer that could not be read."""
    made, now = directories(tmp_path), time.time()
    live = grant(issued_at=now, expires_at=now + 3600)
    put(made.record("linear"), live)
    Publisher(made).publish(live)
    (made.grants / "linear.answer.1").write_bytes(b"an answer")
    (made.demands / "linear.3").touch()
    return made


def _content(state: Directories) -> dict[str, bytes]:
    files = [path for path in state.state.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(state.state)): path.read_bytes() for path in files}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_record_that_cannot_be_stored_changes_nothing(
    state: Directories, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """If it failed, agents would see a change that was not stored, or a kept answer be lost with a grant that stands (I2, I6)."""

    def refuse(*_: object) -> Stored:
        raise StorageError("the disk is full")

    before = _content(state)
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", refuse)
        with pytest.raises(StorageError, match="full"):
            change(state)
    assert _content(state) == before
    change(state)
    assert _content(state) != before


@pytest.mark.parametrize(
    ("change", "locked"),
    [(_import, "linear.lock"), (_import, ".import.lock"), (_remove, "linear.lock")],
    ids=["import", "two imports", "remove"],
)
def test_nothing_is_changed_without_the_lock(state: Directories, change: Change, locked: str) -> None:
    """If it failed, two processes would write one record at once, and a new refresh token be lost (I3)."""
    before = _content(state)
    with lock.held(state.grants / locked, stopping=lambda: False), pytest.raises(Interrupted):
        change(state)
    assert _content(state) == before


@pytest.mark.parametrize("between", [_import, _remove], ids=["import", "remove"])
def test_a_spent_refresh_token_is_never_imported_again(state: Directories, between: Change) -> None:
    """If it failed, an old copy would come back after another import or a removal, and revoke the whole login (I3)."""
    spent = Secret("a-spent-refresh-token")
    put(state.record("linear"), grant(spent=(spent.fingerprint(),)))
    between(state)
    old_copy = grant(grant_id="another", refresh_token=spent)
    with pytest.raises(AlreadySpent):
        store_grant(FileStore(state), old_copy, replace=True, if_absent=False, stopping=lambda: False)


def test_an_import_of_many_sees_what_others_import_meanwhile(state: Directories) -> None:
    """If it failed, one refresh token would be stored under two names while a directory is imported (I3)."""
    tokens = [Secret(f"refresh-token-{number}") for number in range(4)]
    this_command = FileStore(state)
    this_command.expect_imports({each.fingerprint() for each in tokens[:3]})

    def store(name: str, token: Secret, place: FileStore) -> None:
        new = grant(name=name, grant_id=name, refresh_token=token)
        store_grant(place, new, replace=False, if_absent=False, stopping=lambda: False)

    store("first", tokens[0], this_command)
    store("of-another-process", tokens[1], FileStore(state))
    store("not-read-ahead", tokens[3], FileStore(state))
    for token, holder in ((tokens[0], "first"), (tokens[1], "of-another"), (tokens[3], "not-read-ahead")):
        with pytest.raises(ImportRefused, match=f"{holder}.* holds this refresh token already"):
            store("second", token, this_command)
    store("second", tokens[2], this_command)


def test_a_refresh_token_in_doubt_is_not_imported_after_a_removal(state: Directories) -> None:
    """If it failed, a token that may be spent would be sent again under a new grant, and revoke the login (I1)."""
    put(state.record("linear"), grant(doubt=doubt(), failure=failure(outcome="in_doubt")))
    _remove(state)
    with pytest.raises(AlreadySpent):
        store_grant(FileStore(state), grant(grant_id="another"), replace=True, if_absent=False, stopping=lambda: False)


def test_readers_of_another_login_see_a_removal(state: Directories) -> None:
    """If it failed, agents would go on with a token whose grant was removed after the restore of an older login."""
    now = time.time()
    Publisher(state).publish(grant(grant_id="another", generation=7, issued_at=now, expires_at=now + 3600))
    _remove(state)
    published = read_published(state, "linear")
    assert published is not None
    assert (published.generation, published.state, published.access_token) == (7, "removed", None)


def test_a_logout_revokes_the_answer_of_an_interrupted_attempt(state: Directories) -> None:
    """If it failed, a logout after a kill would revoke a spent token, and the new one would stay valid (I4)."""
    new = grant(generation=4, refresh_token=Secret("a-new-refresh-token"))
    put(state.next("linear"), new, records.load(state, "linear").checksum)
    revoked = []

    def revoke(held: Grant) -> str:
        revoked.append(held.refresh_token)
        return "it is revoked"

    remove(FileStore(state), "linear", stopping=lambda: False, revoke=revoke)
    assert revoked == [new.refresh_token]
    assert not state.candidates("linear")


ANN = Account(issuer="https://as.example", subject="1", label="ann@x.example")
BOB = Account(issuer="https://as.example", subject="2", label="bob@x.example")


@pytest.mark.parametrize(
    ("stored", "new", "same_login", "refused"),
    [
        (ANN, BOB, True, "this login is for bob@x.example, and linear is for ann@x.example"),
        (
            ANN,
            Account(issuer=ANN.issuer, subject="2", label=ANN.label),
            True,
            "for ann@x.example (2), and linear is",
        ),
        (ANN, BOB, False, None),
        (ANN, Account(issuer=ANN.issuer, subject="1", label="new@x.example"), True, None),
        (ANN, None, True, None),
        (None, BOB, True, None),
        (ANN, Account(issuer="https://other.example", subject="2"), True, None),
    ],
)
def test_a_login_of_another_account_replaces_nothing(
    state: Directories, stored: Account | None, new: Account | None, same_login: bool, refused: str | None
) -> None:
    """If it failed, the login of one person would silently replace that of another, or a good login would be refused."""
    now = time.time()
    put(state.record("linear"), grant(issued_at=now, expires_at=now + 3600, account=stored))
    before = _content(state)
    login = grant(grant_id="another", generation=0, refresh_token=Secret("a-new-refresh-token"), account=new)
    change = partial(
        store_grant,
        FileStore(state),
        login,
        replace=True,
        if_absent=False,
        stopping=lambda: True,
        same_login=same_login,
    )
    if refused is not None:
        with pytest.raises(OtherAccount, match=re.escape(refused)):
            change(just_issued=True)
        assert _content(state) == before
        return
    change(just_issued=True)
    record = records.load(state, "linear").record
    assert isinstance(record, Grant)
    assert record.account == new
