"""Demands count for published generations only, and a listing of them is bounded by the number of grants."""

import logging
import os
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.errors import StorageError
from refresher.daemon.directory_watch import DirectoryWatch
from refresher.grants.policy import Wait
from refresher.grants.record import Doubt, Grant
from refresher.operations.inspection import inspect
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import demands, sealing
from refresher.storage.directories import Directories, Listing
from refresher.storage.file_store import FileStore
from refresher.storage.publishing import Publisher, published_generation
from tests.conftest import need
from tests.support.fake_state import directories, put
from tests.support.parts import mounted, no_mounts
from tests.support.samples import failure, grant

OWNER, AGENT, GROUP = 12345, 12346, 12347


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory where readers have generation 2 and the record has generation 3, in doubt."""
    made = directories(tmp_path)
    Publisher(made).publish(grant(generation=2))
    put(made.record("linear"), _in_doubt())
    return made


def _in_doubt() -> Grant:
    now = clocks.now()
    return grant(
        issued_at=now.wall,
        expires_at=now.wall + 3600,
        last_rotation_at=now.wall - 60,
        doubt=Doubt(since=now, replay_over=True),
        failure=failure(outcome="in_doubt", at=now.wall, retry_at=now.wall),
        failures=1,
    )


def _plant(state: Directories, generation: int) -> Path:
    planted = state.demands / f"linear.{generation}"
    (planted / "something").mkdir(parents=True)
    return planted


def _outcome(state: Directories) -> str:
    result = rotate(FileStore(state), Order(name="linear", seen=3), Terms(ca_file=None, stopping=lambda: False))
    assert result is not None
    return result.outcome


def _decides_to_wait(state: Directories) -> bool:
    listed = demands.pending(state, ("linear",))
    return isinstance(inspect(Publisher(state), "linear", listing=Listing(), demands=listed).decision, Wait)


def test_a_demand_does_not_count_before_its_generation_is_published(state: Directories) -> None:
    """If it failed, what an agent planted would end the doubt of a rotation that was killed before it published (I1)."""
    _plant(state, 3)
    assert _decides_to_wait(state)
    assert _outcome(state) == "in_doubt"
    assert published_generation(state, "linear", None) == 3
    assert _decides_to_wait(state)
    assert _outcome(state) == "in_doubt"
    assert not list(state.demands.glob("linear.*"))
    # The agents can demand now.
    (state.demands / "linear.3").touch()
    assert not _decides_to_wait(state)


def test_a_planted_demand_that_cannot_be_removed_never_counts(
    state: Directories, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a planted demand in a directory of another user would have a spent refresh token sent again (I1)."""
    need(no_mounts())
    with mounted(state.demands, "size=1m"):
        planted = _plant(state, 3)
        subprocess.run(["mount", "-o", "remount,ro", str(state.demands)], check=True)
        assert _outcome(state) == "in_doubt"
        assert published_generation(state, "linear", None) == 3
        assert caplog.text.count(f"cannot remove the demand {planted}") == 1
        subprocess.run(["mount", "-o", "remount,rw", str(state.demands)], check=True)
        assert _decides_to_wait(state)
        assert _outcome(state) == "in_doubt"
        put(state.record("linear"), msgspec.structs.replace(_in_doubt(), generation=4))
        assert _outcome(state) == "in_doubt"
        (state.demands / "linear.4").touch()
        assert not _decides_to_wait(state), "demands for the next token count again"
    sealing.delete_copies(state, "linear")
    assert not state.barred("linear").exists()


def test_what_another_user_planted_is_removed(tmp_path: Path) -> None:
    """If it failed, an agent that runs as another user could plant demands that refresher cannot remove (I1)."""
    need(no_mounts())  # changing the user needs root as well
    with tempfile.TemporaryDirectory() as root:  # other users cannot reach a directory below that of pytest
        made = directories(Path(root))
        for path in (Path(root), made.state):
            path.chmod(0o711)
        os.chown(made.demands, OWNER, GROUP)
        made.demands.chmod(0o3770)

        def plant() -> None:
            (made.demands / "linear.3/something").mkdir(parents=True)
            (made.demands / "linear.3").chmod(0)
            (made.demands / "linear.4").touch()
            (made.demands / "linear.5").mkdir()

        def remove() -> None:
            assert demands.bar(made, "linear", 3) is None
            listed = demands.pending(made, ("linear",))
            assert listed.by_name == {"linear": frozenset({4, 5})}
            demands.remove(made, "linear", listed.by_name["linear"], keep=range(0), warned=set())

        assert _as_user(AGENT, plant) == 0
        assert _as_user(OWNER, remove) == 0
        (ignored,) = made.demands.iterdir()
        assert ignored.name.startswith("ignored-")
        ignored.chmod(0o700)


def _as_user(user: int, act: Callable[[], None]) -> int:
    """Call ``act`` in a process of ``user``, and return its exit code."""
    if (process := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(user)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_no_token_is_published_while_a_planted_demand_could_count(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a power loss after the publication would bring the planted demand back, and it would count (I1)."""
    _plant(state, 3)

    def refuse(descriptor: int) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="the disk is gone"):
            demands.bar(state, "linear", 3)
        _plant(state, 3)
        with pytest.raises(StorageError):
            Publisher(state).publish(grant())
    assert published_generation(state, "linear", None) == 2


def test_a_damaged_bar_lets_no_demand_count_and_is_reported_once(
    state: Directories, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a damaged disk would let a planted demand end a doubt (I1), or nobody would know what agents wait for."""
    publisher, record = Publisher(state), grant()
    publisher.publish(record)
    assert publisher.is_demanded(record, frozenset({3}), range(3, 4))
    assert not publisher.is_demanded(record, frozenset({2}), range(3, 4))
    for content in (b"", b"x", b"9" * 100):
        state.barred("linear").write_bytes(content)
        assert not publisher.is_demanded(record, frozenset({3}), range(3, 4))
    assert caplog.text.count(f"{state.barred('linear')} cannot be read") == 1


def test_a_listing_keeps_only_what_belongs_to_its_names(state: Directories) -> None:
    """If it failed, demands for names without a grant would cost memory for each of them."""
    for name in ("linear.3", "linear.2", "linear.x", "unknown.3", "linear"):
        (state.demands / name).touch()
    listed = demands.pending(state, ("linear", "notion"))
    assert listed.complete
    assert listed.by_name == {"linear": frozenset({2, 3})}


def test_beyond_a_bound_demands_are_looked_up_by_name(
    state: Directories, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, an agent could hide the demands of all others behind its own, or be answered for each of them."""
    for bound in ("_LISTED", "_KEPT"):
        with monkeypatch.context() as patch:
            patch.setattr(demands, bound, 0)
            patch.setattr(demands, "_FOR_EACH", 3)
            for generation in range(900, 910):
                (state.demands / f"linear.{generation}").touch()
            for generation in (2, 3):
                (state.demands / f"linear.{generation}").touch()
            listed = demands.pending(state, ("linear",))
            assert not listed.complete
            assert len(listed.by_name["linear"]) == 3
            assert listed.of("linear", range(3, 4)) == listed.by_name["linear"] | {2, 3}
            warned: set[str] = set()
            caplog.set_level(logging.WARNING, "refresher")
            caplog.clear()
            for _ in range(2):
                listed.warn(warned)
            assert caplog.text.count("too many entries in") == 1


def test_a_demand_beyond_the_listing_is_found_by_the_daemon(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, the daemon would not notice a demand among too many others."""
    monkeypatch.setattr(demands, "_LISTED", 0)
    monkeypatch.setattr(demands, "_FOR_EACH", 0)
    watch = DirectoryWatch(state)
    for count in range(3):
        (state.demands / f"unknown.{count}").touch()
        assert watch.changed() == {"linear"}
    # Directories that stay as they are cost nothing.
    for directory in (state.grants, state.tokens, state.demands):
        os.utime(directory, (time.time() - 60, time.time() - 60))
    watch.changed()
    assert watch.changed() == set()


def test_memory_for_a_listing_is_bounded_also_for_the_own_name(state: Directories) -> None:
    """If it failed, demands for one grant could fill the memory of eight rotations at once."""
    for number in range(60_000):
        (state.demands / f"linear.{10**17 + number}").touch()
    tracemalloc.start()
    try:
        assert not demands.pending(state, ("linear",)).complete
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_demands_count_where_others_can_write_to_the_tokens(state: Directories) -> None:
    """If it failed, agents could demand nothing where a person made tokens/ with a wide mode."""
    Publisher(state).publish(_in_doubt())
    state.tokens.chmod(0o770)
    assert Publisher(state).current(_in_doubt()) == range(3, 4)
    assert not Publisher(state).current(grant(generation=4))


def test_a_restored_backup_keeps_the_number_of_current_generations_small(state: Directories) -> None:
    """If it failed, a damaged token file of a huge generation would cost a look-up for each generation."""
    Publisher(state).publish(grant(generation=10**6))
    assert Publisher(state).current(grant()) == range(10**6 - 99, 10**6 + 1)


def test_nothing_is_listed_or_removed_through_a_link_of_another_user(state: Directories) -> None:
    """If it failed, a user who can replace demands/ by a link could have files of grants/ removed as demands."""
    need(no_mounts())  # a link of another user needs root
    answer = state.grants / "linear.answer.17"
    answer.touch()
    state.demands.rmdir()
    state.demands.symlink_to("grants")
    os.chown(state.demands, 12345, -1, follow_symlinks=False)
    assert demands.pending(state, ("linear.answer",)).by_name == {}
    demands.remove(state, "linear.answer", frozenset({17}), keep=range(0), warned=set())
    assert demands.bar(state, "linear.answer", 17) is None
    assert answer.exists()
    assert demands.barred_until(state, "linear.answer") == 17, "nobody can tell what is in demands/"


def test_a_directory_of_another_user_stops_nothing_and_counts_for_nothing(state: Directories) -> None:
    """If it failed, a user who makes a missing demands/ could let every token expire, or decide what is demanded."""
    need(no_mounts())  # another owner needs root
    (state.demands / "linear.3").touch()
    os.chown(state.demands, 12345, -1)
    state.demands.chmod(0o777)
    assert "belongs to user 12345, who could remove demands" in (state.prepare() or "")
    assert "belongs to user 12345" in (state.listing().demands_problem or "")
    assert demands.pending(state, ("linear",)).by_name == {}
    assert demands.bar(state, "linear", 3) is None
    assert demands.barred_until(state, "linear") == 3, "nobody can tell which demands are older"


def test_a_removal_that_was_not_synced_is_synced_before_the_publication(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a power loss after the publication would bring a removed demand back, and it would count (I1)."""
    synced: list[str] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    assert demands.bar(state, "linear", 3) is None
    assert str(state.demands) in synced


def test_a_demand_for_a_published_token_survives_another_publication_of_it(state: Directories) -> None:
    """If it failed, an agent whose token was refused would wait for the schedule after each failed exchange."""
    (state.tokens / "linear.json").chmod(0o660)  # written by a group of which this user is the only member
    (state.demands / "linear.2").touch()
    Publisher(state).publish(grant(generation=2, failure=failure()))
    assert (state.demands / "linear.2").exists()
