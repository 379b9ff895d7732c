"""Recovery: the files that an interrupted attempt leaves, and the record that results from them."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError, StorageError
from refresher.common.secret import Secret
from refresher.grants import transition
from refresher.grants.encoding import encode
from refresher.grants.record import NO_RECORD, Grant, Stored, Tombstone
from refresher.operations.inspection import Inspection, inspect
from refresher.storage import records, recovery
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Listing
from refresher.storage.journal import Attempt, Mark
from refresher.storage.publishing import Publisher
from tests.support.fake_state import directories, put
from tests.support.samples import NOON, REFRESH, at, doubt, failure, grant

OLD = grant()
NEW = grant(generation=4, refresh_token=Secret("refresh-token-of-generation-4"), spent=(REFRESH.fingerprint(),))
SOON = at(NOON + 10)
REBOOTED = at(NOON + 10, boot="boot-2")


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory with the old record in it."""
    made = directories(tmp_path)
    put(made.record("linear"), OLD)
    return made


def _stored(state: Directories) -> Stored:
    return records.load(state, "linear")


def _killed(state: Directories, *, marked: bool) -> Attempt:
    """Leave the files of a process that was killed after it declared its intent."""
    attempt = Attempt(state, "linear", _stored(state))
    attempt.reserve(OLD, at())
    if marked:
        attempt.before_first_byte()
    return attempt


def _resolve(state: Directories, now: Moment = SOON) -> Grant:
    record = recovery.recover(state, "linear", now).record
    assert isinstance(record, Grant)
    assert _stored(state).record == record, "the returned record is not the one on the disk"
    return record


def _inspect(state: Directories) -> Inspection:
    Publisher(state).publish(_stored(state).record or OLD)
    return inspect(Publisher(state), "linear", listing=Listing(), demands=Demands(directory=state.demands))


def _other_files(state: Directories) -> list[str]:
    return sorted(path.name for path in state.grants.iterdir() if path.name != "linear.json")


def test_an_attempt_that_sent_nothing_is_removed(state: Directories) -> None:
    """If it failed, every kill before the request would put a healthy grant in doubt."""
    _killed(state, marked=False)
    assert msgspec.structs.replace(_resolve(state), begun_from=NO_RECORD) == OLD
    assert _other_files(state) == []


@pytest.mark.parametrize(("marked", "now"), [(True, SOON), (True, REBOOTED), (False, REBOOTED)])
def test_an_attempt_that_may_have_sent_its_request_puts_the_grant_in_doubt(
    state: Directories, marked: bool, now: Moment
) -> None:
    """If it failed, a used refresh token would be sent again, and the server would revoke the grant (I1)."""
    _killed(state, marked=marked)
    record = _resolve(state, now)
    assert record.doubt is not None
    assert record.doubt.since == at()
    assert record.refresh_token == OLD.refresh_token
    assert _other_files(state) == []
    assert _resolve(state, now) == record, "a second recovery changed the record"


def test_a_saved_answer_is_adopted(state: Directories) -> None:
    """If it failed, a kill between the durable answer and the rename would lose the new refresh token (I6)."""
    _killed(state, marked=True)
    put(state.next("linear"), NEW, _stored(state).checksum)
    record = _resolve(state)
    assert record.refresh_token == NEW.refresh_token
    assert record.doubt is None
    assert _other_files(state) == []


def test_an_answer_that_was_not_truncated_to_its_length_is_adopted(state: Directories) -> None:
    """If it failed, a kill between the write of the answer and the end of the reservation would lose the answer (I6)."""
    _killed(state, marked=True)
    put(state.next("linear"), NEW, _stored(state).checksum)
    with state.next("linear").open("ab") as file:
        file.write(bytes(60_000))
    assert _resolve(state).refresh_token == NEW.refresh_token
    assert _other_files(state) == []


def test_recovery_waits_for_a_spill_that_is_missing(state: Directories) -> None:
    """If it failed, a spill on a file system that is mounted late would be ignored, and its refresh token lost (I6)."""
    attempt = _killed(state, marked=True)
    checksum = _stored(state).checksum
    attempt._mark(Mark.SPILLED)
    for _ in range(2):
        with pytest.raises(StorageError, match="spill"):
            recovery.recover(state, "linear", SOON)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, checksum)
    assert _resolve(state).refresh_token == NEW.refresh_token
    assert _other_files(state) == []


def test_a_spill_whose_mark_was_lost_in_a_power_cut_is_adopted_when_it_appears(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a disk error, a power cut and a late mount together would lose a new refresh token (I6)."""
    monkeypatch.setattr(clocks, "now", lambda: REBOOTED)  # a fake, because a test cannot reboot the machine
    attempt, checksum = _killed(state, marked=True), _stored(state).checksum
    record = _resolve(state, REBOOTED)
    assert record.failure is not None
    assert f"it is in {attempt._spill}" in record.failure.description
    later = transition.mark_in_doubt(record, "another loss", doubt=doubt(REBOOTED), now=REBOOTED)
    records.write(state, "linear", _stored(state), later)
    assert not _inspect(state).needs_lock
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, checksum)
    assert _inspect(state).needs_lock, "nothing would look for it before the access token expires"
    record = _resolve(state, REBOOTED)
    assert (record.refresh_token, record.doubt, record.generation) == (NEW.refresh_token, None, 4)
    assert (list(state.spill.iterdir()), _other_files(state)) == ([], [])


def test_a_spill_that_was_published_before_a_power_cut_is_adopted_when_it_appears(state: Directories) -> None:
    """If it failed, the newer token file would look like a restored backup, and the spilled refresh token would be lost (I6)."""
    attempt, checksum = _killed(state, marked=True), _stored(state).checksum
    Publisher(state).publish(NEW)
    record = _resolve(state, REBOOTED)
    assert (record.generation, record.expires_at) == (4, NEW.expires_at)
    assert record.doubt is not None
    assert record.doubt.spill == str(attempt._spill)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, checksum)
    record = _resolve(state, REBOOTED)
    assert (record.refresh_token, record.doubt, record.generation) == (NEW.refresh_token, None, 4)
    assert (list(state.spill.iterdir()), _other_files(state)) == ([], [])


def test_a_doubt_names_the_spill_of_the_last_attempt(state: Directories) -> None:
    """If it failed, recovery would look for the spill of an older attempt, and miss the saved answer of the last one (I6)."""
    put(state.record("linear"), grant(doubt=doubt(at(NOON - 100)), failure=failure(outcome="in_doubt")))
    attempt = _killed(state, marked=True)
    known = _resolve(state, REBOOTED).doubt
    assert known is not None
    assert (known.since, known.spill) == (at(NOON - 100), str(attempt._spill))


@pytest.mark.parametrize(
    ("spilled", "begun_from"),
    [
        (NEW, "0" * 64),
        (msgspec.structs.replace(NEW, grant_id="another"), None),
        (msgspec.structs.replace(NEW, generation=3), None),
    ],
    ids=["of another record", "of another login", "not a successor"],
)
def test_a_spill_that_appears_and_does_not_fit_is_set_aside(
    state: Directories, spilled: Grant, begun_from: str | None
) -> None:
    """If it failed, the token of another record would be adopted, or deleted (I6)."""
    attempt, checksum = _killed(state, marked=True), _stored(state).checksum
    before = _resolve(state, REBOOTED)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, spilled, begun_from or checksum)
    assert _resolve(state, REBOOTED) == before
    assert [path.name for path in state.spill.iterdir()] == [f"{attempt._spill.name}.aside.{int(REBOOTED.wall)}"]


def test_a_killed_attempt_without_a_spill_names_none(state: Directories) -> None:
    """If it failed, after each kill a person would look for a file that never existed."""
    _killed(state, marked=True)
    record = _resolve(state)
    assert record.failure is not None
    assert str(state.spill) not in record.failure.description


def test_recovery_does_not_wait_for_a_spill_that_was_adopted_before_a_kill(state: Directories) -> None:
    """If it failed, a kill during the cleanup would stop the grant for ever, because it waits for a file that is not needed."""
    begun_from = _stored(state).checksum
    _killed(state, marked=True)._mark(Mark.SPILLED)
    put(state.record("linear"), NEW, begun_from)
    assert _resolve(state).generation == 4
    assert _other_files(state) == []


def test_an_intent_that_is_older_than_the_record_is_removed(state: Directories) -> None:
    """If it failed, an old intent would be set aside with a warning although nothing is wrong."""
    _killed(state, marked=True)
    put(state.record("linear"), grant(generation=7), "0" * 64)
    record = _resolve(state)
    assert (record.generation, record.doubt) == (7, None)
    assert _other_files(state) == []


def test_an_intent_beside_a_tombstone_is_set_aside(state: Directories) -> None:
    """If it failed, a removed name with a leftover would end each run with a traceback."""
    _killed(state, marked=True)
    tombstone = Tombstone(name="linear", grant_id="0123", generation=3, begun_from="", removed_at=NOON, scope=None, origins=("https://a",))  # fmt: skip
    state.record("linear").write_bytes(encode(tombstone)[0])
    assert recovery.recover(state, "linear", SOON).record == tombstone
    assert _other_files(state) == [f"linear.intent.aside.{int(SOON.wall)}"]


def test_an_answer_in_a_second_file_is_adopted_and_the_damaged_first_file_is_set_aside(state: Directories) -> None:
    """If it failed, an answer that was written to a second file after an I/O error would be lost."""
    _killed(state, marked=True)
    state.next("linear").write_bytes(b'{"version":1,"checks' + bytes(100))
    put(state.fresh("linear"), NEW, _stored(state).checksum)
    assert _resolve(state).refresh_token == NEW.refresh_token
    assert _other_files(state) == [f"linear.next.aside.{int(SOON.wall)}"]


def test_a_spilled_answer_is_adopted_and_the_spill_is_removed(state: Directories) -> None:
    """If it failed, a refresh token that was saved in the spill directory would never be used."""
    attempt = _killed(state, marked=True)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, _stored(state).checksum)
    assert _resolve(state).refresh_token == NEW.refresh_token
    assert list(state.spill.iterdir()) == []
    assert _other_files(state) == []


def test_a_kill_after_the_rename_leaves_only_an_intent_to_remove(state: Directories) -> None:
    """If it failed, a completed rotation would put its grant in doubt."""
    begun_from = _stored(state).checksum
    _killed(state, marked=True)
    put(state.record("linear"), NEW, begun_from)
    record = _resolve(state)
    assert (record.generation, record.doubt) == (4, None)
    assert _other_files(state) == []


def test_a_recorded_failure_whose_intent_remains_is_unchanged(state: Directories) -> None:
    """If it failed, a kill after a recorded 503 would turn a backoff into a doubt."""
    begun_from = _stored(state).checksum
    _killed(state, marked=True)
    failed = put(state.record("linear"), msgspec.structs.replace(OLD, failures=1), begun_from)
    assert _resolve(state) == failed.record
    assert _other_files(state) == []


@pytest.mark.parametrize("leftover", ["stale", "other grant", "torn", "another file"])
def test_what_does_not_fit_is_set_aside_and_never_adopted(state: Directories, leftover: str) -> None:
    """If it failed, an old leftover would replace the only good refresh token, or would be deleted (I6)."""
    if leftover == "stale":
        put(state.next("linear"), NEW, "0" * 64)
    elif leftover == "other grant":
        put(state.next("linear"), msgspec.structs.replace(NEW, name="notion"), _stored(state).checksum)
    elif leftover == "torn":
        put(state.next("linear"), NEW, _stored(state).checksum)
        state.next("linear").write_bytes(state.next("linear").read_bytes()[:-20])
    else:
        state.next("linear").mkdir()
    before = state.record("linear").read_bytes()
    content = None if leftover == "another file" else state.next("linear").read_bytes()
    _resolve(state)
    assert state.record("linear").read_bytes() == before
    aside = state.grants / f"linear.next.aside.{int(SOON.wall)}"
    assert content is None or aside.read_bytes() == content
    # The name of the next file that does not fit is in use.
    state.next("linear").write_bytes(b"again")
    _resolve(state)
    assert content is None or aside.read_bytes() == content


def test_an_intent_that_is_newer_than_a_restored_backup_is_set_aside(state: Directories) -> None:
    """If it failed, a restored backup would be in doubt because of another record, or hide that something is wrong."""
    _killed(state, marked=True)
    put(state.record("linear"), grant(generation=2, refresh_token=Secret("refresh-token-of-generation-2")))
    record = _resolve(state)
    assert (record.generation, record.doubt) == (2, None)
    assert _other_files(state) == [f"linear.intent.aside.{int(SOON.wall)}"]


@pytest.mark.parametrize("written", [b"", bytes(500)])
def test_an_empty_intent_is_ignored(state: Directories, written: bytes) -> None:
    """If it failed, a kill or a power loss before the declaration would put a healthy grant in doubt."""
    _killed(state, marked=False)
    state.intent("linear").write_bytes(written)
    assert msgspec.structs.replace(_resolve(state), begun_from=NO_RECORD) == OLD
    assert _other_files(state) == []


def test_a_restored_backup_of_the_same_token_is_in_doubt(state: Directories) -> None:
    """If it failed, a record that was restored beside its intent would send a refresh token that was already sent."""
    _killed(state, marked=True)
    put(state.record("linear"), grant(failures=5))
    assert _resolve(state).doubt is not None
    assert _other_files(state) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"generation", b"generatiom"),
        lambda data: data.replace(b"\n", b"\x0b"),
        lambda data: data[:1],
        lambda data: data[:50],
        lambda data: data[:-1],
        lambda data: data[:-2],
        lambda data: data + b"-",
        lambda data: bytes(70_000) + data,
        lambda data: b"[" * 60_000 + data[-2:],
    ],
    ids=["key", "line end", "1 byte", "50 bytes", "no mark", "no line end", "two marks", "too large", "nested"],
)
def test_a_damaged_intent_means_doubt_and_is_set_aside(state: Directories, damage: Callable[[bytes], bytes]) -> None:
    """If it failed, a changed bit would hide that a request may have been sent, or end each start with a traceback (I1)."""
    _killed(state, marked=True)
    path = state.intent("linear")
    path.write_bytes(damage(path.read_bytes()))
    record = _resolve(state)
    assert record.doubt is not None
    assert record.doubt.since == SOON
    assert record.doubt.replay_over, "a grace period counts from an unknown time"
    assert _other_files(state) == [f"linear.intent.aside.{int(SOON.wall)}"]


def test_a_damaged_intent_counts_as_one_failure(state: Directories) -> None:
    """If it failed, a kill during recovery would count the same loss twice, and double the backoff."""
    _killed(state, marked=True)
    damaged = state.intent("linear").read_bytes()[:50]
    for _ in range(2):
        state.intent("linear").write_bytes(damaged)
        record = _resolve(state)
    assert (record.doubt is not None, record.failures) == (True, 1)


def test_a_spilled_answer_is_found_even_if_its_intent_is_damaged(state: Directories) -> None:
    """If it failed, damage to the intent would lose an answer that reached the disk (I6)."""
    attempt = _killed(state, marked=True)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, _stored(state).checksum)
    state.intent("linear").write_bytes(state.intent("linear").read_bytes()[:50])
    record = _resolve(state)
    assert (record.refresh_token, record.doubt) == (NEW.refresh_token, None)
    assert list(state.spill.iterdir()) == []


def test_recovery_changes_nothing_beside_a_damaged_record(state: Directories) -> None:
    """If it failed, a cleanup beside a damaged record could delete the only copy of its successor."""
    _killed(state, marked=True)
    put(state.next("linear"), NEW, _stored(state).checksum)
    state.record("linear").write_bytes(b"{")
    before = _other_files(state)
    with pytest.raises(GrantFileError):
        recovery.recover(state, "linear", SOON)
    assert _other_files(state) == before


def test_a_reservation_allocates_its_space(state: Directories) -> None:
    """If it failed, a full disk would be noticed only after the refresh token was used."""
    _killed(state, marked=False)
    status = state.next("linear").stat()
    assert status.st_size >= 65536
    assert status.st_blocks * 512 >= 65536
    assert status.st_mode & 0o777 == 0o600


def test_a_second_reservation_does_not_change_the_files_of_the_first(state: Directories) -> None:
    """If it failed, an attempt that cannot reserve would remove the intent of another one."""
    _killed(state, marked=True)
    before = {path.name: path.read_bytes() for path in state.grants.iterdir()}
    with pytest.raises(StorageError):
        Attempt(state, "linear", _stored(state)).reserve(OLD, at())
    assert {path.name: path.read_bytes() for path in state.grants.iterdir()} == before


def test_a_write_without_an_exchange_leaves_no_other_files(state: Directories) -> None:
    """If it failed, imports and removals would leave more and more files in grants/."""
    records.write(state, "linear", _stored(state), NEW)
    assert _resolve(state).generation == 4
    assert _other_files(state) == []


def test_a_spill_that_comes_back_stays_until_it_is_adopted(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a kill or a disk error during its adoption would take the only copy of a refresh token (I6)."""
    attempt, checksum = _killed(state, marked=True), _stored(state).checksum
    _resolve(state, REBOOTED)
    state.spill.mkdir(mode=0o700)
    put(attempt._spill, NEW, checksum)

    def refuse(*_: object) -> Stored:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", refuse)
        with pytest.raises(StorageError):
            recovery.recover(state, "linear", REBOOTED)
    assert attempt._spill.exists()
    assert _resolve(state, REBOOTED).refresh_token == NEW.refresh_token
