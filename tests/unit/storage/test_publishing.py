"""What readers see where the record and the token file are of different generations."""

from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import StorageError
from refresher.common.secret import Secret
from refresher.grants import encoding, token_file
from refresher.grants.record import NO_RECORD, Grant, Stored, Tombstone
from refresher.storage import files, publishing, records
from refresher.storage.directories import Directories
from refresher.storage.keys import KeyRing, Source
from refresher.storage.publishing import Publisher
from shim._token import TokenFile
from tests.support.fake_state import directories
from tests.support.samples import NOON, failure, grant
from tests.support.sealed import make_key

RECORD = grant()
NEWER = grant(generation=7, access_token=Secret("access-token-of-generation-7"))


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory where readers have a token of generation 7."""
    made = directories(tmp_path)
    Publisher(made).publish(NEWER)
    return made


def _published(state: Directories) -> TokenFile:
    token = publishing.read_published(state, "linear")
    assert token is not None
    return token


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("older", [RECORD, grant(failure=failure(), failures=1), grant(grant_id="another")])
def test_an_older_generation_never_replaces_a_newer_one(state: Directories, older: Grant, again: bool) -> None:
    """If it failed, agents would get an expired token back after a backup was restored."""
    before = _published(state)
    assert not Publisher(state).publish(older, again=again)
    assert _published(state) == before


def test_the_end_of_a_restored_grant_leaves_readers_the_newer_token(state: Directories) -> None:
    """If it failed, agents would lose a live token, or never see that a person must log in again (I5)."""
    before = _published(state)
    dead = grant(dead=True, failure=failure(outcome="reauthorization_required", code="invalid_grant"))
    assert Publisher(state).publish(dead)
    after = _published(state)
    assert (after.generation, after.access_token) == (7, before.access_token)
    assert after.state == "reauthorization_required"


def test_a_demand_for_a_newer_published_token_is_current(state: Directories) -> None:
    """If it failed, a demand for the token that readers have would be removed unanswered after a restored backup."""
    assert Publisher(state).current(RECORD) == range(3, 8)
    assert not Publisher(state).current(grant(generation=9)), "nobody has this token yet"


LONG = "word " * 100_000
REMOVED = Tombstone(
    name="linear",
    grant_id="0123",
    generation=8,
    begun_from="",
    removed_at=NOON,
    scope=LONG,
    origins=RECORD.origins,
)


@pytest.mark.parametrize(
    ("record", "clause"),
    [
        (grant(generation=8, scope=LONG), "no scope"),
        (grant(generation=8, scope="\u00e9" * 50_000), "no scope"),
        (grant(generation=8, access_token=Secret("a" * 260_000), scope="read " * 1000), "no scope"),
        (grant(generation=8, failure=failure(description=LONG)), "a shortened description of the error"),
        (
            grant(generation=8, failure=failure(description=LONG), scope=LONG),
            "a shortened description of the error and no scope",
        ),
        (REMOVED, "no scope"),
    ],
)
def test_a_token_file_leaves_out_what_is_too_long(state: Directories, record: Grant | Tombstone, clause: str) -> None:
    """If it failed, agents would refuse the token file as too large, and lose the access token too."""
    assert Publisher(state).publish(record)
    assert state.token("linear").stat().st_size <= 256 * 1024
    token = _published(state)
    shortened = "description" in clause and isinstance(record, Grant)
    assert token.scope == (None if "scope" in clause else record.scope)
    assert (token.error is not None and token.error.description == f"{LONG[:1000]}...") is shortened
    if isinstance(record, Grant) and record.access_token is not None:
        assert token.access_token == record.access_token.reveal()
    assert token_file.left_out(record) == f"the token file has {clause}, because it would be larger than 256 KiB"
    assert not Publisher(state).is_stale(record), "it would be written again at each run"


def test_what_fits_is_published_whole(state: Directories) -> None:
    """If it failed, agents would not see a scope or an error that they can read."""
    record = grant(generation=8, scope="word " * 50_000, failure=failure(description="d" * 5000))
    Publisher(state).publish(record)
    token = _published(state)
    assert (token.scope, token.error and token.error.description) == (record.scope, "d" * 5000)
    assert token_file.left_out(record) == ""


def test_an_access_token_that_is_too_long_is_not_published(state: Directories) -> None:
    """If it failed, agents would lose the token that they have, and get one that they cannot read."""
    before = _published(state)
    record = grant(generation=8, access_token=Secret("a" * 262_000), scope="read")
    with pytest.raises(StorageError, match="the access token of linear is too long for a token file of 256 KiB"):
        Publisher(state).publish(record)
    assert _published(state) == before
    assert Publisher(state).is_stale(record)


def test_a_token_file_that_is_set_aside_stays_in_its_place_until_it_is_replaced(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a kill between the two steps would leave readers without a token file."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("killed")

    path = state.token("linear")
    path.chmod(0o666)  # others can write it, so it proves no restored backup
    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", refuse)
        with pytest.raises(StorageError):
            Publisher(state).publish(RECORD)
    assert path.exists()
    assert len(list(state.tokens.glob("linear.json.aside.*"))) == 1
    assert Publisher(state).publish(RECORD)
    assert _published(state).generation == RECORD.generation


def test_a_token_file_that_another_version_would_write_otherwise_is_not_written_again(
    state: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, each run after an upgrade would write each sealed grant's file, and every reader would read it."""
    sealed = msgspec.structs.replace(state, keys=KeyRing(Source("file", str(make_key(tmp_path, "first")))))
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_hash_of_token_file", lambda _: "0" * 64)  # of other bytes
        records.write(sealed, "linear", Stored(None, NO_RECORD), NEWER)
    publisher = Publisher(sealed)

    def read() -> Grant:
        record = records.load(sealed, "linear").record
        assert isinstance(record, Grant)
        return record

    publisher.publish(read())
    first = sealed.token("linear").stat().st_ino
    publisher.publish(read())
    assert sealed.token("linear").stat().st_ino == first
    assert not publisher.is_stale(read())


def test_an_error_in_the_token_file_does_not_stop_the_record(
    state: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a bug in what agents see would lose a new refresh token between its answer and its saving (I6)."""
    sealed = msgspec.structs.replace(state, keys=KeyRing(Source("file", str(make_key(tmp_path, "first")))))

    def fail(_: object) -> bytes:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "derive", fail)
        records.write(sealed, "linear", Stored(None, NO_RECORD), grant(generation=8))
    record = records.load(sealed, "linear").record
    assert record is not None
    assert Publisher(sealed).is_stale(record)
    Publisher(sealed).publish(record)
    assert not Publisher(sealed).is_stale(record)
