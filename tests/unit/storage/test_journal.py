"""The journal of an attempt where the disk refuses: what stays, what is durable, and what is never overwritten."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refresher.common.errors import StorageError
from refresher.common.secret import Secret
from refresher.grants.envelope import PLAIN
from refresher.grants.record import Grant
from refresher.storage import demands, files, records
from refresher.storage.directories import Directories
from refresher.storage.journal import Attempt
from tests.support.fake_state import directories, put
from tests.support.samples import NOON, at, grant

OLD = grant()
NEW = grant(generation=4, refresh_token=Secret("refresh-token-of-generation-4"))

Synced = Callable[[Path], bool]


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with the old record in it."""
    made = directories(tmp_path)
    put(made.record("linear"), OLD)
    return made


@pytest.fixture
def attempt(state: Directories) -> Attempt:
    """An attempt that is declared and has sent its request."""
    made = Attempt(state, "linear", records.load(state, "linear"))
    made.reserve(OLD, at())
    made.before_first_byte()
    return made


@pytest.fixture
def synced(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> Synced:
    """Whether a file or directory was synced since the request was sent."""
    sync, done = os.fsync, set()

    def noted(descriptor: int) -> None:
        sync(descriptor)
        done.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    return lambda path: path.stat().st_ino in done


def _refuse_renames(state: Directories) -> None:
    """Put a directory in the place of the record: no file can replace it, so ``grants/`` takes no record."""
    state.record("linear").unlink()
    state.record("linear").mkdir()


def _held_in(path: Path) -> Grant:
    found = records.read_candidate(path, "linear", PLAIN)
    assert found is not None
    assert isinstance(found.record, Grant)
    return found.record


def test_a_request_without_a_declared_intent_is_refused(state: Directories) -> None:
    """If it failed, a refresh token could be spent without a trace that a crash leaves behind (I1)."""
    with pytest.raises(StorageError):
        Attempt(state, "linear", records.load(state, "linear")).before_first_byte()


def test_a_spill_overwrites_no_other_file(state: Directories, attempt: Attempt) -> None:
    """If it failed, a spill would destroy a file that may hold the only copy of another refresh token (I6)."""
    state.spill.mkdir(mode=0o700)
    attempt._spill.write_bytes(b"another only copy, perhaps")
    _refuse_renames(state)
    attempt.persist(NEW, until_saved=True)
    assert _held_in(attempt._spill).refresh_token == NEW.refresh_token
    (aside,) = state.spill.glob("*.aside.*")
    assert aside.read_bytes() == b"another only copy, perhaps"


def test_no_spill_is_written_where_others_can_read_it(state: Directories, attempt: Attempt) -> None:
    """If it failed, a refresh token would be written into a directory that other users can read or change (I7)."""
    state.spill.mkdir()
    state.spill.chmod(0o750)
    with pytest.raises(OSError, match="not a private directory"):
        attempt._spill_file(attempt._spill, b"a new record")
    assert list(state.spill.iterdir()) == []


def test_a_spill_that_is_not_needed_any_more_is_removed(state: Directories, attempt: Attempt) -> None:
    """If it failed, a spill that was cut off and could not be removed would keep a refresh token for ever."""
    state.spill.mkdir(mode=0o700)
    attempt._spill.write_bytes(b"half of a new record")
    attempt.persist(NEW, until_saved=True)
    assert list(state.spill.iterdir()) == []
    assert [path.name for path in state.grants.iterdir()] == ["linear.json"]


def test_a_record_that_took_a_second_file_leaves_no_first_one(
    state: Directories, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, each disk error would leave a refresh token in a file that nothing removes before the next run."""
    sync, failures = os.fsync, [OSError(5, "Input/output error")]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    attempt.persist(NEW, until_saved=False)
    assert not failures
    assert _held_in(state.record("linear")).refresh_token == NEW.refresh_token
    assert [path.name for path in state.grants.iterdir()] == ["linear.json"]


def test_the_first_copies_that_could_not_be_renamed_stay(state: Directories, attempt: Attempt) -> None:
    """If it failed, the only copy of a refresh token that reached the disk could be deleted, or copies fill it (I6)."""
    _refuse_renames(state)
    for _ in range(10):
        with pytest.raises(OSError, match="directory"):
            attempt._write_fresh(NEW.name.encode())
    names = [path.name for path in state.candidates("linear")]
    assert names == ["linear.next", "linear.next.1", "linear.next.2", "linear.next.3"]


def test_the_mark_of_a_spill_is_durable(state: Directories, attempt: Attempt, synced: Synced) -> None:
    """If it failed, a power loss would hide that a spill holds the answer, while its file system is not mounted (I6)."""
    _refuse_renames(state)
    attempt.persist(NEW, until_saved=True)
    assert synced(attempt._spill)
    assert synced(state.intent("linear"))


@pytest.mark.parametrize("refuses_files", [False, True])
def test_an_answer_that_is_kept_is_durable(
    state: Directories, attempt: Attempt, synced: Synced, monkeypatch: pytest.MonkeyPatch, refuses_files: bool
) -> None:
    """If it failed, a power loss would take the only copy of a token that refresher says it has kept (I6)."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError

    if refuses_files:
        monkeypatch.setattr(files, "durable_create", refuse)  # a full disk, which has the reserved space alone
    assert "linear.answer." in attempt.keep_answer(b"an answer", NOON)
    (kept,) = state.grants.glob("linear.answer.*")
    assert kept.read_bytes() == b"an answer"
    assert synced(kept)
    assert synced(state.grants)


def test_a_kept_answer_stays_if_only_its_directory_cannot_be_synced(
    state: Directories, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a disk error would delete the only copy of an answer that is complete (I6)."""
    attempt.close()  # there is no reserved space any more
    state.spill.parent.mkdir(parents=True, exist_ok=True)
    state.spill.write_bytes(b"a file in the place of the spill directory")

    def refuse(_: Path) -> None:
        raise OSError("the directory cannot be synced")

    monkeypatch.setattr(files, "sync_directory", refuse)
    attempt.keep_answer(b"an answer", NOON)
    (kept,) = state.grants.glob("linear.answer.*")
    assert kept.read_bytes() == b"an answer"


def test_removing_demands_costs_nothing_for_the_size_of_the_range_to_keep(state: Directories) -> None:
    """If it failed, a damaged token file of a huge generation would hold a rotation, with the lock, for hours."""
    for generation in (2, 10**17):
        (state.demands / f"linear.{generation}").touch()
    demanded = demands.pending(state, ("linear",)).of("linear", range(3, 10**18))
    demands.remove(state, "linear", demanded, keep=range(3, 10**18), warned=set())
    assert [path.name for path in state.demands.iterdir()] == [f"linear.{10**17}"]
