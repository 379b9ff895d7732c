"""The index of grants that ``run-once`` need not read: whatever happens to it or to the files costs time at most."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.config import Settings, resolve
from refresher.grants.policy import Wait
from refresher.grants.record import NO_RECORD, Grant, Stored, TokenRejected
from refresher.operations.inspection import inspect
from refresher.operations.rest import Resting
from refresher.operations.result import Result
from refresher.operations.run_once import run_once
from refresher.storage import demands, records, rest_index, stamps
from refresher.storage.publishing import Publisher
from tests.support.command import Command
from tests.support.samples import NOON, at, doubt, failure, grant
from tests.support.unreachable import LIVE

NAMES = ("a", "b", "c")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Moment], None]:
    """Set the time; at first it is a minute after the tokens were issued."""

    def put(moment: Moment) -> None:
        # A fake, because a test cannot set the real clocks.
        monkeypatch.setattr(clocks, "now", lambda: moment)

    put(at(NOON + 60))
    return put


@pytest.fixture
def settings(tmp_path: Path, clock: object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with three healthy grants, for which an index is worth while, and whose files count as old."""
    monkeypatch.setattr(rest_index, "FEWEST", 0)
    monkeypatch.setattr(stamps, "_SETTLED_NS", -(10**18))
    made = resolve({"state_dir": str(tmp_path / "state")}, None)
    made.directories.prepare()
    for name in NAMES:
        store(made, grant(name=name, token_endpoint="http://127.0.0.1:9/token"))
    return made


def store(settings: Settings, record: Grant) -> None:
    """Store and publish ``record``."""
    records.write(settings.directories, record.name, Stored(None, NO_RECORD), record)
    Publisher(settings.directories).publish(record)


def run(settings: Settings, horizon: float = 0.0) -> tuple[list[Result], set[str]]:
    """Run once; return the results and the names whose records were read."""
    read: set[str] = set()
    load = records.load

    def counted(directories: object, name: str) -> Stored:
        read.add(name)
        return load(settings.directories, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "load", counted)
        return run_once(settings, (), force=False, horizon=horizon, stopping=lambda: False), read


def test_a_second_run_says_the_same_and_reads_and_writes_nothing(settings: Settings) -> None:
    """If it failed, each run would cost as much as there are grants, or would say something else than the first."""
    first, read = run(settings)
    assert read == set(NAMES)
    path = settings.directories.rest_index
    written = path.stat()
    assert run(settings) == (first, set())
    assert path.stat() == written
    assert written.st_mode & 0o777 == 0o600
    assert b"token-of" not in path.read_bytes(), "a secret"


def _flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def _truncate(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _expose(path: Path, other: Path) -> None:
    path.chmod(0o644)


def _make_a_directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _take_that_of_another_directory(path: Path, other: Path) -> None:
    path.unlink()
    shutil.copytree(path.parent, other)
    moved = resolve({"state_dir": str(other)}, None)
    run(moved)
    shutil.copy(moved.directories.rest_index, path)


def _make_it_older(path: Path, other: Path) -> None:
    data = path.read_bytes().partition(b"\n")[2].replace(b'["1 ', b'["0 ')
    path.write_bytes(rest_index._checksum(data) + b"\n" + data)


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _truncate,
        _empty,
        _remove,
        _expose,
        _make_a_directory,
        _take_that_of_another_directory,
        _make_it_older,
    ],
)
def test_an_index_that_is_not_ours_and_whole_is_ignored(
    settings: Settings, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    """If it failed, a damaged, foreign or older index would decide about grants."""
    first, _ = run(settings)
    damage(settings.directories.rest_index, tmp_path / "other")
    assert run(settings) == (first, set(NAMES))


@pytest.mark.parametrize(
    "moment",
    [at(NOON - 7200, lasted=61), at(NOON + 120, lasted=60), at(NOON + 61, boot="boot-2"), at(NOON + 61, boot="")],
)
def test_an_index_from_before_a_clock_was_set_or_a_boot_is_ignored(
    settings: Settings, clock: Callable[[Moment], None], moment: Moment
) -> None:
    """If it failed, run-once would decide otherwise than run after a clock was set (I9)."""
    run(settings)
    clock(moment)
    assert run(settings)[1] == set(NAMES)


def _edit(settings: Settings) -> None:
    path = settings.directories.record("b")
    before = path.stat()
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data.replace(b"read", b"dear"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _expose_the_record(settings: Settings) -> None:
    settings.directories.record("b").chmod(0o644)


def _expose_the_token(settings: Settings) -> None:
    settings.directories.token("b").chmod(0o640)


def _remove_the_token(settings: Settings) -> None:
    settings.directories.token("b").unlink()


def _damage_the_token(settings: Settings) -> None:
    settings.directories.token("b").write_bytes(b"{}")


def _demand(settings: Settings) -> None:
    (settings.directories.demands / "b.3").touch()


def _begin_an_attempt(settings: Settings) -> None:
    settings.directories.next("b").touch(mode=0o600)


def _restore_a_backup(settings: Settings) -> None:
    path = settings.directories.record("b")
    data, status = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        _edit,
        _expose_the_record,
        _expose_the_token,
        _remove_the_token,
        _damage_the_token,
        _demand,
        _begin_an_attempt,
        _restore_a_backup,
    ],
)
def test_what_has_changed_since_is_read(settings: Settings, change: Callable[[Settings], None]) -> None:
    """If it failed, run-once would trust the index over the files."""
    run(settings)
    change(settings)
    assert run(settings)[1] == {"b"}


def test_what_has_just_changed_is_read_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a second change within the same tick of the file system's clock would be missed."""
    monkeypatch.setattr(stamps, "_SETTLED_NS", 10**18)  # all counts as new
    for _ in range(2):
        assert run(settings)[1] == set(NAMES)


def test_a_grant_whose_certificate_ends_is_read_each_time(settings: Settings) -> None:
    """If it failed, the metrics of many grants would lack the end of a certificate, and no alert would come before it."""
    store(settings, grant(name="bank", client_cert="/etc/refresher/bank.pem"))
    assert run(settings)[1] == {*NAMES, "bank"}
    assert run(settings)[1] == {"bank"}


def test_what_is_due_is_read(settings: Settings, clock: Callable[[Moment], None]) -> None:
    """If it failed, a grant would not be rotated in time."""
    run(settings)
    assert run(settings, horizon=3600)[1] == set(NAMES)
    clock(at(NOON + 3000))
    assert run(settings)[1] == set(NAMES)


_VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"failure": failure()},
    {"failure": failure(), "doubt": doubt()},
    {"dead": True, "failure": failure(retry_at=None)},
    {"login_ends_at": NOON + 7200},
    {"login_ends_at": NOON + 5400, "end_warned": 86400.0},
    {"refresh_token_expires_at": NOON + 1800},
    {"not_before": NOON + 600},
    {"renewable": False},
    {"issued": at()},
    {"token_rejected": TokenRejected(origin=None, at=NOON)},
    {"expires_at": None},
    {"access_token": None},
    {"issued_at": NOON + 500},
)


@pytest.mark.parametrize("seed", range(10))
def test_at_any_later_time_the_index_says_what_an_inspection_says(
    settings: Settings, clock: Callable[[Moment], None], seed: int
) -> None:
    """If it failed, run-once would decide otherwise than run for the same record, demands and time (I9)."""
    chosen, directories = random.Random(seed), settings.directories
    wall, lasted = NOON + 60.0, 60.0
    for _ in range(60):
        for name in chosen.sample(NAMES, chosen.randrange(3)):
            store(settings, msgspec.structs.replace(grant(name=name), **chosen.choice(_VARIANTS)))
        passed = chosen.choice((0.0, 1.0, 300.0, 1500.0))
        lasted += passed
        wall += passed + chosen.choice((0.0, 0.0, 0.4, -900.0, 900.0))
        clock(at(wall, lasted=lasted))
        listing, pending = directories.listing(), demands.pending(directories, NAMES)
        resting, horizon = Resting(directories, listing, pending), chosen.choice((0.0, 600.0))
        for name in NAMES:
            found = inspect(Publisher(directories), name, listing=listing, demands=pending, horizon=horizon)
            known = resting.find(name, horizon)
            if not found.needs_lock and isinstance(found.record, Grant) and isinstance(found.decision, Wait):
                assert known in (None, Result.from_decision(found.record, found.decision))
                if known is None:
                    resting.add(found.record, found.decision)
            else:
                assert known is None
        resting.save()


def test_processes_that_write_at_the_same_time_leave_a_whole_index(settings: Settings) -> None:
    """If it failed, two runs of cron at the same time would leave an index that no run can use."""
    code = (
        "import sys\n"
        "from refresher.common.clocks import Moment\n"
        "from refresher.config import resolve\n"
        "from refresher.storage import rest_index\n"
        "directories = resolve({'state_dir': sys.argv[1]}, None).directories\n"
        "now = Moment(wall=9.0, monotonic=9.0, boottime=9.0, boot_id='b')\n"
        "for number in range(300):\n"
        "    rests = {f'g{each}': rest_index.Rest(number, 1, 2.0) for each in range(2000)}\n"
        "    rest_index.save(directories, None, now, rests)\n"
        "    found = rest_index.load(directories, None, now)\n"
        "    assert len(found) == 2000 and len({each.stamp for each in found.values()}) == 1, len(found)\n"
    )
    state = str(settings.directories.state)
    writers = [subprocess.Popen([sys.executable, "-c", code, state]) for _ in range(2)]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    left = {path.name for path in settings.directories.state.iterdir()}
    assert left == {"grants", "tokens", "demands", "rest-index"}


def test_a_file_that_a_killed_writer_left_stops_no_later_one(settings: Settings) -> None:
    """If it failed, one kill at the wrong time would make each later run slow."""
    left = settings.directories.rest_index.with_name(".rest-index.new")
    left.write_bytes(b"half")
    run(settings)
    assert run(settings)[1] == set(NAMES), "it may still be written"
    os.utime(left, (1.0, 1.0))
    run(settings)
    assert run(settings)[1] == set()


def test_the_command_with_and_without_the_index_says_the_same(refresher: Command) -> None:
    """If it failed, what run-once says would depend on a file that may be lost."""
    for number in range(rest_index.FEWEST):
        refresher.bring(f"g{number}", LIVE | {"refresh_token": f"the-refresh-token-of-{number}"})
    index = refresher.state / "rest-index"
    stale = refresher.state / "tokens/g7.json"
    found = []
    for lost in (True, False, True):
        if lost:
            index.unlink(missing_ok=True)
        done = refresher("run-once", "--json")
        assert done.code == 0
        found.append({name: (each["outcome"], each["generation"]) for name, each in done.results.items()})
    assert found[0] == found[1] == found[2]
    whole = stale.read_bytes()
    stale.unlink()
    refresher("run-once")
    assert stale.read_bytes() == whole
