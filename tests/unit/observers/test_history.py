"""The history: bounded, private, shared by processes, and begun anew if it is damaged."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from refresher.common.errors import StorageError
from refresher.observers import history
from refresher.observers.history import Follower, History, is_known, read
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from refresher.storage import startup_checks
from refresher.storage.directories import Directories
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.fake_state import directories
from tests.support.parts import mounted, no_mounts


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    return directories(tmp_path)


def _event(number: int, name: str = "linear", *, at: float | None = None, detail: str = "") -> Event:
    return Event(
        at=time.time() if at is None else at,
        name=name,
        kind="rotated",
        generation=number,
        outcome="rotated",
        detail=detail,
    )


def _write(state: Directories, *events: Event, days: float = 30, megabytes: float = 100) -> None:
    made = History(state, days=days, megabytes=megabytes)
    try:
        made.observe(events)
    finally:
        made.close()


def _size(state: Directories) -> int:
    return sum(path.stat().st_size for path in state.state.glob("events.sqlite3*") if ".aside" not in path.name)


def test_what_is_written_can_be_read(state: Directories) -> None:
    """If it failed, 'refresher events' and the page would show something else than what happened."""
    assert read(state) == []
    events = [_event(number, name, at=1000.0 + number) for number in range(4) for name in ("linear", "notion")]
    _write(state, *events, days=36500)
    assert read(state) == events
    assert read(state, ("notion",), 1001.0, 1002.0) == [events[3], events[5]]
    assert state.history.stat().st_mode & 0o777 == 0o600


def test_several_processes_write_at_once(state: Directories) -> None:
    """If it failed, run and run-once at one time would lose events."""
    writers = [History(state, days=30, megabytes=100) for _ in range(3)]
    for number in range(20):
        for writer in writers:
            writer.observe([_event(number)])
    for writer in writers:
        writer.close()
    assert len(read(state)) == 60


_PROCESS = """
import sys, time
from pathlib import Path
from tests.support.fake_state import directories
from refresher.observers.history import History
from refresher.operations.events import Event
sys.stdin.readline()
made = History(directories(Path(sys.argv[1])), days=30, megabytes=100)
for number in range(100):
    made.observe([Event(at=time.time(), name=sys.argv[2], kind="rotated", generation=number)])
made.close()
"""


def test_real_processes_begin_it_at_once_beside_a_reader(state: Directories, tmp_path: Path) -> None:
    """If it failed, two crons of one minute would each begin a history, or a reader would make one lose events."""
    root, names = Path(__file__).parents[3], ["a", "b", "c"]
    found: list[Event] = []
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", _PROCESS, str(tmp_path), name], cwd=root, stdin=subprocess.PIPE)
            )
            for name in names
        ]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        reader = stack.enter_context(closing(Follower(state, ())))
        while any(writer.poll() is None for writer in writers):
            found += reader.read()
        found += reader.read()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    for name in names:
        assert [event.generation for event in found if event.name == name] == [*range(100)]
    assert not list(state.state.glob("*.aside*"))


def test_old_events_are_removed(state: Directories) -> None:
    """If it failed, the history would keep what happened for longer than a person has set."""
    _write(state, _event(1, at=time.time() - 40 * 86400), _event(2, at=time.time() - 20 * 86400))
    _write(state, *map(_event, range(3, 103)))
    assert [event.generation for event in read(state)] == [*range(2, 103)]


def test_a_clock_that_is_ahead_does_not_cost_the_history(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, one run with a wrong clock would remove all that happened, while a person wants to see it."""
    _write(state, *map(_event, range(150)))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 40 * 86400)
    _write(state, _event(150))
    assert [event.generation for event in read(state)] == [*range(151)]
    _write(state, *map(_event, range(151, 250)))
    assert [event.generation for event in read(state)] == [*range(150, 250)]


def test_the_newest_events_stay_whatever_their_age(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a grant that is rotated once a month would have no history."""
    long_ago = time.time() - 400 * 86400
    _write(state, *(_event(number, at=long_ago + number) for number in range(60)), days=1)
    _write(state, _event(60), days=1)
    assert [event.generation for event in read(state)] == [*range(61)]


def test_it_stays_below_its_size(state: Directories) -> None:
    """If it failed, the history of many grants would fill the disk of the grants."""
    made, largest = History(state, days=30, megabytes=10), 0
    for batch in range(70):
        made.observe(
            [_event(number, f"grant-{number}", detail="x" * 800) for number in range(256 * batch, 256 * batch + 256)]
        )
        largest = max(largest, _size(state))
    made.close()
    assert 6_000_000 < largest < 10_000_000
    generations = [event.generation for event in read(state)]
    assert generations[-1] == 70 * 256 - 1
    assert generations[0] != 0
    _write(state, *(_event(number) for number in range(10)), megabytes=5)
    assert _size(state) < largest


def test_nothing_is_written_when_little_space_is_left(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the history would take the space that a new refresh token needs."""
    need(no_mounts())
    with mounted(state.state, "size=1m"):
        with pytest.raises(EventsLost, match="less than 200 MB are free"):
            _write(state, _event(1))
        assert not state.history.exists()
        monkeypatch.setattr(history, "FREE", 0)
        made = History(state, days=30, megabytes=100)
        made.observe([_event(1)])
        (state.state / "filler").write_bytes(bytes(200_000))
        with pytest.raises(StorageError, match="full"):
            made.observe([_event(number, detail="x" * 1000) for number in range(2000)])
        (state.state / "filler").unlink()
        made.observe([_event(2)])
        made.close()
        assert [event.generation for event in read(state)] == [1, 2]


@pytest.mark.parametrize("kind", ["noise", "page", "bits", "cut", "foreign", "table"])
def test_a_file_that_cannot_be_used_is_set_aside(
    state: Directories, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """If it failed, a damaged history would never hold an event again, or be lost to the person who wants to see it."""
    _write(state, *(_event(number, detail="x" * 500) for number in range(200)))
    if kind == "noise":
        state.history.write_bytes(os.urandom(10_000))
    elif kind == "page":
        content = state.history.read_bytes()
        state.history.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    elif kind == "bits":
        flipped = bytearray(state.history.read_bytes())
        flipped[4096:] = bytes(each ^ 0x55 for each in flipped[4096:])
        state.history.write_bytes(flipped)
    elif kind == "cut":
        os.truncate(state.history, state.history.stat().st_size // 2)
    else:
        with sqlite3.connect(state.history) as connection:
            statement = {"foreign": "PRAGMA application_id = 7"}
            connection.execute(statement.get(kind, "DROP TABLE event"))
        connection.close()
    damaged = state.history.read_bytes()
    _write(state, _event(7))
    _write(state, _event(8))
    assert [event.generation for event in read(state)] == [7, 8]
    assert state.history.with_name("events.sqlite3.aside").read_bytes()[:4096] == damaged[:4096]
    (warning,) = caplog.messages
    assert "damaged or of another program: it is now" in warning


def test_only_the_newest_file_is_kept_aside(state: Directories) -> None:
    """If it failed, damage that repeats would fill the disk."""
    for content in (b"first" * 1000, b"second" * 1000):
        state.history.write_bytes(content)
        state.history.chmod(0o600)
        _write(state, _event(1))
    assert sorted(path.name for path in state.state.glob("events.sqlite3*")) == [
        "events.sqlite3",
        "events.sqlite3.aside",
    ]
    assert state.history.with_name("events.sqlite3.aside").read_bytes() == b"second" * 1000


def test_a_directory_in_its_place_is_left_alone(state: Directories) -> None:
    """If it failed, the history would remove what a person has put there, or a person could not know why it is empty."""
    state.history.mkdir()
    (state.history / "theirs").touch()
    with pytest.raises(StorageError, match=r"events\.sqlite3"):
        _write(state, _event(1))
    assert (state.history / "theirs").exists()


def test_a_read_only_directory_is_a_reason_and_not_damage(state: Directories, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a file system that became read-only would cost the history, or the reason would be unknown."""
    need(no_mounts())
    with mounted(state.state, "size=300m"):
        _write(state, _event(1))
        subprocess.run(["mount", "-o", "remount,ro", str(state.state)], check=True)
        with pytest.raises(StorageError, match=r"(?i)read-?only"):
            _write(state, _event(2))
        assert [path.name for path in state.state.glob("events*")] == ["events.sqlite3"]
        subprocess.run(["mount", "-o", "remount,rw", str(state.state)], check=True)
        _write(state, _event(3))
        assert [event.generation for event in read(state)] == [1, 3]
    assert caplog.messages == []


def test_a_name_is_known_without_a_look_into_its_events(state: Directories) -> None:
    """If it failed, 'refresher events NAME' would first read all that ever happened to a removed grant."""
    assert not is_known(state, "linear")
    _write(state, _event(1))
    with closing(sqlite3.connect(state.history, isolation_level=None)) as connection:
        connection.execute("UPDATE event SET event = 'of a later version'")
    assert is_known(state, "linear")
    assert not is_known(state, "notion")


_READER = """
import sys
from pathlib import Path
from tests.support.fake_state import directories
from refresher.observers.history import is_known, read
view = directories(Path(sys.argv[1]))
print([event.generation for event in read(view)], is_known(view, "linear"), is_known(view, "notion"))
"""


@pytest.mark.parametrize("used", [False, True])
def test_a_history_in_a_read_only_directory_can_be_read(state: Directories, tmp_path: Path, used: bool) -> None:
    """If it failed, a person could not see what happened before a file system became read-only."""
    need(no_mounts())
    view = directories(tmp_path / "view")
    with closing(History(state, days=30, megabytes=100)) as writer:
        writer.observe([_event(1)])
        if not used:
            writer.close()
        subprocess.run(["mount", "--bind", str(state.state), str(view.state)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(view.state)], check=True)
            reader = [sys.executable, "-c", _READER, str(tmp_path / "view")]
            done = subprocess.run(reader, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
        finally:
            subprocess.run(["umount", str(view.state)], check=True)
    assert (done.stdout, done.stderr) == ("[1] True False\n", "")


def test_a_lower_limit_shrinks_it(state: Directories) -> None:
    """If it failed, a person who gives the history less space would not get the space back."""
    _write(state, *(_event(number, detail="x" * 900) for number in range(12_000)))
    assert _size(state) > 10_000_000
    made = History(state, days=30, megabytes=5)
    for number in range(40):
        made.observe([_event(20_000 + number)])
    made.close()
    assert _size(state) < 5_000_000
    generations = [event.generation for event in read(state)]
    assert generations[-40:] == [*range(20_000, 20_040)]


@pytest.mark.parametrize("kind", ["link", "readable"])
def test_a_file_of_others_is_not_written(state: Directories, tmp_path: Path, kind: str) -> None:
    """If it failed, events would be written through a link, or into a file that other users can read."""
    (other := tmp_path / "other").touch(mode=0o600)
    if kind == "link":
        state.history.symlink_to(other)
    else:
        state.history.touch()
        state.history.chmod(0o644)
    with pytest.raises(StorageError):
        _write(state, _event(1))
    assert other.stat().st_size == state.history.stat().st_size == 0


def test_a_history_that_was_deleted_is_made_again(state: Directories) -> None:
    """If it failed, 'run' would write into a deleted file until it is started again."""
    made = History(state, days=30, megabytes=100)
    made.observe([_event(1)])
    reader = Follower(state, ())
    assert len(reader.read()) == 1
    for path in state.state.glob("events.sqlite3*"):
        path.unlink()
    made.observe([_event(2)])
    assert [event.generation for event in reader.read()] == [2]
    made.observe([_event(3)])
    assert [event.generation for event in reader.read()] == [3]
    reader.close()
    made.close()


def test_a_network_file_system_has_no_shared_memory(state: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, the history on a network file system would be damaged by its write-ahead log."""
    _write(state, _event(1))
    monkeypatch.setattr(startup_checks, "is_shared", lambda _: True)
    made = History(state, days=30, megabytes=100)
    made.observe([_event(2)])
    assert sorted(path.name for path in state.state.glob("events.sqlite3*")) == ["events.sqlite3"]
    made.close()
    assert len(read(state)) == 2


_WRITER = """
import sys
from pathlib import Path
from tests.support.fake_state import directories
from refresher.observers.history import History
from refresher.operations.events import Event
made = History(directories(Path(sys.argv[1])), days=30, megabytes=100)
number = 0
while True:
    made.observe([Event(at=float(number), name="linear", kind="rotated", generation=number + each) for each in range(50)])
    number += 50
"""


def test_a_history_whose_writer_is_killed_opens_again(state: Directories, tmp_path: Path) -> None:
    """If it failed, a kill would cost the whole history."""
    for kill in range(3):
        before = len(read(state))
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], cwd=Path(__file__).parents[3])
        wait_until(lambda: len(read(state)) > before + 20 * kill, "it writes")  # noqa: B023
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
        with sqlite3.connect(state.history) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert not state.history.with_name("events.sqlite3.aside").exists()


def test_a_history_of_a_later_version_is_left_alone(state: Directories, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, two versions of refresher side by side would take the history from each other."""
    _write(state, _event(1))
    with closing(sqlite3.connect(state.history)) as connection:
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    there = state.history.stat().st_ino
    with pytest.raises(StorageError, match="of a later version: use the newer refresher"):
        _write(state, _event(2))
    with pytest.raises(StorageError, match="of a later version"):
        read(state)
    assert state.history.stat().st_ino == there
    assert caplog.messages == []


def test_a_second_connection_in_a_process_keeps_the_locks_of_the_first(state: Directories) -> None:
    """If it failed, another process that ends would delete the log of this one, and its events with it."""
    first, second = History(state, days=30, megabytes=100), History(state, days=30, megabytes=100)
    first.observe([_event(1)])
    second.observe([_event(2)])  # a reload begins another before the first has ended
    second.close()
    # Another process reads and ends: were it the only one with a lock, it would remove the log.
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM event').fetchall(); c.close()"
    )
    for generation in (3, 4):
        subprocess.run([sys.executable, "-c", code, str(state.history)], check=True)
        first.observe([_event(generation)])
    assert state.history.with_name("events.sqlite3-wal").exists()
    assert [event.generation for event in read(state)] == [1, 2, 3, 4]
    first.close()
    assert [event.generation for event in read(state)] == [1, 2, 3, 4]
