"""Recovery of sealed grants: what an attempt left, with keys that are there in part or not at all."""

from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import GrantFileError, KeyUnavailable
from refresher.common.secret import Secret
from refresher.doctor.grants import check_seals
from refresher.grants.encoding import decode, encode
from refresher.grants.record import Grant, Stored
from refresher.operations.encryption import seals
from refresher.operations.import_grant import store_grant
from refresher.storage import records, recovery
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Attempt
from refresher.storage.keys import KeyRing, Source
from tests.support.fake_state import directories
from tests.support.samples import NOON, REFRESH, at, doubt, grant
from tests.support.sealed import key_source

NEW = grant(generation=4, refresh_token=Secret("the-only-copy"), spent=(REFRESH.fingerprint(),))
SOON = at(NOON + 10)


@pytest.fixture
def old(tmp_path: Path) -> Source:
    return key_source(tmp_path, "old")


@pytest.fixture
def new(tmp_path: Path) -> Source:
    return key_source(tmp_path, "new")


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    return directories(tmp_path)


def _with(state: Directories, current: Source, previous: Source | None = None) -> Directories:
    return msgspec.structs.replace(state, keys=KeyRing(current, previous))


def _put(path: Path, record: Grant, keys: KeyRing) -> None:
    path.touch(0o600)
    path.write_bytes(encode(record, keys)[0])


def _record(state: Directories, key: Source, there: Grant) -> Stored:
    """Leave a record that is sealed."""
    _put(state.record("linear"), there, KeyRing(key))
    return records.load(_with(state, key), "linear")


def _cut_off(state: Directories, key: Source) -> None:
    """Leave an answer that is whole, sealed, and not renamed."""
    sealed = _with(state, key)
    stored = _record(state, key, grant())
    attempt = Attempt(sealed, "linear", stored)
    attempt.reserve(grant(), at())
    attempt.before_first_byte()
    _put(state.next("linear"), msgspec.structs.replace(NEW, begun_from=stored.checksum), sealed.keys)
    attempt.close()


def _kept(state: Directories, key: Source) -> list[str]:
    """Return the files that hold the new token."""
    found = []
    for path in [*state.grants.iterdir(), *(state.spill.iterdir() if state.spill.exists() else ())]:
        if b'"generation":4' in (data := path.read_bytes()):
            record = decode(data, "linear", KeyRing(key)).record
            assert isinstance(record, Grant)
            assert record.refresh_token == NEW.refresh_token
            found.append(path.name)
    return found


def test_an_import_without_the_key_of_a_write_changes_nothing(state: Directories, old: Source, nowhere: Source) -> None:
    """If it failed, an import that fails would take the only copy of a new token with it (I6)."""
    _cut_off(state, old)
    files = {path.name: path.read_bytes() for path in state.grants.iterdir()}
    store = FileStore(_with(state, nowhere, old))
    with pytest.raises(KeyUnavailable, match="cannot read the key"):
        store_grant(store, grant(refresh_token=Secret("x")), replace=True, if_absent=False, stopping=lambda: False)
    assert {path.name: path.read_bytes() for path in state.grants.iterdir()} == files


def test_an_answer_that_cannot_be_written_is_set_aside(state: Directories, old: Source, nowhere: Source) -> None:
    """If it failed, a person who gives up a grant would lose the new token although the grant stays (I6)."""
    _cut_off(state, old)
    found: list[str] = []
    without = _with(state, nowhere, old)
    stored = recovery.recover(without, "linear", SOON, giving_up=True, report=lambda finding, _: found.append(finding))
    assert stored.record is not None
    assert stored.record.generation == 4
    (kept,) = _kept(state, old)
    assert kept.startswith("linear.next.aside.")
    assert any("could not be adopted" in finding and kept in finding for finding in found)
    assert not any(finding.startswith("adopted") for finding in found)


def _late(state: Directories, spilled: Source, sealed: Source, *, fits: bool) -> Path:
    """Leave a record in doubt, and the spill that it waited for."""
    state.spill.mkdir(0o700)
    path = state.spilled("linear", "a" * 64)
    _put(path, msgspec.structs.replace(NEW, begun_from="a" * 64 if fits else "b" * 64), KeyRing(spilled))
    _record(state, sealed, grant(doubt=msgspec.structs.replace(doubt(), spill=str(path), begun_from="a" * 64)))
    return path


def test_a_late_spill_that_cannot_be_written_is_set_aside(state: Directories, old: Source, nowhere: Source) -> None:
    """If it failed, the same would happen to a spill whose file system was mounted later (I6)."""
    path = _late(state, old, old, fits=True)
    recovery.recover(_with(state, nowhere, old), "linear", SOON, giving_up=True)
    assert not path.exists()
    (kept,) = _kept(state, old)
    assert kept.startswith(f"{path.name}.aside.")


def test_a_late_spill_stays_until_the_record_can_be_opened(state: Directories, old: Source, new: Source) -> None:
    """If it failed, a key that is away would set aside a spill that it might have adopted."""
    path = _late(state, new, old, fits=False)
    with pytest.raises(KeyUnavailable):
        recovery.recover(_with(state, new), "linear", SOON)
    assert path.exists()
    recovery.recover(_with(state, new, old), "linear", SOON)
    assert not path.exists()
    assert len(_kept(state, new)) == 1


def test_a_damaged_spill_is_named_as_damaged(state: Directories, old: Source) -> None:
    """If it failed, a person would look for a file system to mount, or discard the only copy of a token (I6)."""
    sealed = _with(state, old)
    stored = _record(state, old, grant())
    attempt = Attempt(sealed, "linear", stored)
    attempt.reserve(grant(), at())
    attempt.before_first_byte()
    attempt.close()
    state.next("linear").unlink()
    intent = state.intent("linear")
    intent.write_bytes(intent.read_bytes()[:-1] + b"*")
    state.spill.mkdir(0o700)
    spill = state.spilled("linear", stored.checksum)
    _put(spill, msgspec.structs.replace(NEW, begun_from=stored.checksum), sealed.keys)
    assert [seal.form for seal in seals(FileStore(sealed))] == ["current"]
    data = bytearray(spill.read_bytes())
    data[-60] ^= 1
    spill.write_bytes(data)
    with pytest.raises(GrantFileError, match="is damaged"):
        recovery.recover(sealed, "linear", SOON)
    assert spill.read_bytes() == data
    (seal,) = seals(FileStore(sealed))
    assert [form for each, form in seal.holdings if each.what == spill.name] == ["damaged"]
    assert [(each.code, each.what.split(":")[0]) for each in check_seals([seal])] == [
        ("invalid_grant_file", spill.name)
    ]
