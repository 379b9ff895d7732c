"""What is kept beside sealed grants: in which form it is, and whose it is."""

from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import GrantFileError
from refresher.grants.encoding import encode, encode_kept
from refresher.operations.remove import remove
from refresher.storage import records, sealing
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.keys import KeyRing, Source
from tests.support.fake_state import directories, put
from tests.support.samples import grant
from tests.support.sealed import make_key

ANSWER = b'{"refresh_token": "a-secret"}'


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with a plain grant, and a key for it."""
    made = directories(tmp_path)
    put(made.record("linear"), grant())
    keys = KeyRing(Source("file", str(make_key(tmp_path, "first"))))
    return msgspec.structs.replace(made, keys=keys)


def _keep(path: Path, data: bytes) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(0o600)
    path.write_bytes(data)
    return path


def _reseal(state: Directories) -> int:
    return sealing.reseal(state, "linear", records.load(state, "linear"))


def test_a_spill_of_another_state_directory_is_not_changed(state: Directories) -> None:
    """If it failed, the record that begins from those bytes would not be adopted, with the only copy of a token."""
    plain = encode(grant(generation=9))[0]
    live = _keep(state.spilled("linear", "a" * 64), plain)
    aside = _keep(live.with_name(f"{live.name}.aside.1700000000"), plain)
    answer = _keep(state.spill / "linear.answer.1700000000", ANSWER)
    assert _reseal(state) == 3
    assert live.read_bytes() == plain
    assert b"refresh-token-of" not in aside.read_bytes()
    assert b"a-secret" not in answer.read_bytes()
    assert live.name not in {each.what for each in sealing.holdings(state, "linear")}


def test_a_damaged_file_does_not_stop_the_others(state: Directories) -> None:
    """If it failed, one file that nobody needs would leave all that comes after it in clear text, for ever."""
    sealed = encode_kept("linear", ANSWER, KeyRing(Source("file", str(make_key(state.state, "lost")))))
    first = _keep(state.grants / "linear.answer.1600000000", sealed)
    second = _keep(state.grants / "linear.answer.1700000000", ANSWER)
    with pytest.raises(GrantFileError, match=f"{first.name}: .*delete it if it is not needed"):
        _reseal(state)
    assert b"a-secret" not in second.read_bytes()
    assert first.read_bytes() == sealed


def test_a_removal_does_not_say_that_it_keeps_what_it_deletes(
    state: Directories, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a person would look for a file with the only copy of a token that is not there."""
    _reseal(state)
    _keep(state.next("linear"), encode(grant(generation=4), state.keys)[0])
    other = KeyRing(Source("file", str(make_key(state.state, "other"))))
    remove(FileStore(msgspec.structs.replace(state, keys=other)), "linear", stopping=lambda: False)
    assert "the record cannot be opened" in caplog.text
    assert "linear.next fits no known record; it is deleted with the grant" in caplog.text
    assert "aside" not in caplog.text
    assert not [path.name for path in state.grants.iterdir() if ".aside." in path.name]
