"""Power losses at each step: images of a live ext4, mounted in another boot (I2, I4, I6)."""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from refresher.grants.record import Grant, Tombstone
from shim._token import parse
from tests.conftest import need
from tests.support.command import Command
from tests.support.oidc import OIDC
from tests.support.parts import injecting, no_strace
from tests.support.power import Disk, no_disk, other_boot, steps, stopping
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


class Cut(NamedTuple):
    """What a power loss leaves, and what was sent and published until then."""

    image: Path
    after: str
    sent: bool
    published: bytes


@pytest.fixture
def disk(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """The state directory on its own ext4; its images are where no test searches for secrets."""
    need(no_disk())
    need(no_strace())
    with Disk(refresher.state, tmp_path_factory.mktemp("images")) as made:
        yield made


def _rename_only(path: Path) -> None:
    path.with_name("next").write_bytes(b"new")
    path.with_name("next").rename(path)


def _no_directory(path: Path) -> None:
    with path.with_name("next").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    path.with_name("next").rename(path)


def _everything(path: Path) -> None:
    _no_directory(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("write", "at_once", "after_another_fsync"),
    [(_rename_only, b"old", b""), (_no_directory, b"old", b"new"), (_everything, b"new", b"new")],
)
def test_the_images_show_which_data_was_not_synced(
    disk: Disk, write: Callable[[Path], None], at_once: bytes, after_another_fsync: bytes
) -> None:
    """If it failed, the tests below would pass even if the refresher did not sync its files."""
    path = disk.place / "record"
    path.write_bytes(b"old")
    disk.settle()
    write(path)
    left = []
    for name in ("at-once", "later"):
        with disk.after_power_loss(disk.copy(name)) as place:
            left.append((place / "record").read_bytes())
        disk.commit()
    assert left == [at_once, after_another_fsync]


def _cuts(
    refresher: Command, disk: Disk, server: OIDC, *arguments: str, committing: bool, failing: str = ""
) -> list[Cut]:
    """Run a command step by step; return each different image, with the last step at which it is the state of the disk."""
    trace = disk.image.with_name("strace")
    before = len(server.requests())
    cuts: dict[str, Cut] = {}

    def cut(after: str) -> None:
        if committing:
            disk.commit()
        image = disk.copy(f"cut-{len(cuts)}")
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        if digest in cuts:
            image.unlink()
            image = cuts[digest].image
        sent = len(server.requests()) > before
        cuts[digest] = Cut(image, after, sent, (refresher.tokens / "linear.json").read_bytes())

    process = refresher.start(*arguments, prefix=stopping(trace, failing))
    calls = set()
    for number, call in enumerate(steps(process, trace)):
        calls.add(call)
        cut(f"{call} (step {number})")
    assert "renameat" in calls, "no cut at the publication"
    done = refresher.finish(process)
    assert done.code == 0, done.stderr
    cut("the end")
    return list(cuts.values())


def _different(disk: Disk, cuts: list[Cut]) -> Generator[tuple[Cut, Path], None, None]:
    """Yield the cuts with different files, the last one first, and the mount point of each image."""
    seen = set()
    for cut in reversed(cuts):
        with disk.after_power_loss(cut.image) as place:
            left = (cut.published, _tree(place))
            if left not in seen:
                yield cut, place
            seen.add(left)


def _tree(place: Path) -> frozenset[tuple[str, int, bytes]]:
    paths = [path for path in place.rglob("*") if path.name not in ("another-file", "lost+found")]
    return frozenset(
        (str(path.relative_to(place)), path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in paths
    )


def _restarted(refresher: Command, place: Path, published: bytes) -> Command:
    """Return the command on a rebooted machine, with what a power loss left at ``place``."""
    home = place.with_name(f"{place.name}.home")
    home.mkdir(mode=0o700)
    again = Command(home, refresher.vault)
    again.state, again.tokens = place, place / "tokens"
    again.environment["REFRESHER_STATE_DIR"] = str(place)
    if not refresher.tokens.is_relative_to(refresher.state):
        # On another disk, which lost nothing.
        again.tokens = home / "tokens"
        again.environment["REFRESHER_TOKENS_DIR"] = str(again.tokens)
        again.tokens.mkdir(mode=0o700)
        (again.tokens / "linear.json").write_bytes(published)
    return again


def _live(refresher: Command, server: OIDC, where: str) -> None:
    """Import a grant and rotate it once, with its tokens on the same disk or another one; sync everything."""
    if where == "another disk":
        refresher.tokens = refresher.home / "tokens"
        refresher.environment["REFRESHER_TOKENS_DIR"] = str(refresher.tokens)
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("run-once").code == 0
    subprocess.run(["sync", "-f", str(refresher.state)], check=True)


@pytest.mark.parametrize(
    ("tokens", "committing", "failing"),
    [
        ("another disk", False, ""),
        ("same disk", True, ""),
        ("another disk", False, "ftruncate"),
    ],
    ids=["unchanged", "all names durable", "another file"],
)
def test_a_power_loss_at_any_step_of_a_rotation_leaves_the_old_token_or_the_new(
    refresher: Command, own_oidc: Start, disk: Disk, tokens: str, committing: bool, failing: str
) -> None:
    """If it failed, a power loss could cost a login, or a spent refresh token could be sent again (I1, I2, I6)."""
    server = own_oidc()
    _live(refresher, server, tokens)
    old = refresher.refresh_token("linear")
    cuts = _cuts(refresher, disk, server, "run-once", "--force", committing=committing, failing=failing)
    new = refresher.refresh_token("linear")
    requests = len(server.requests())
    outcomes = set()
    with closing(_different(disk, cuts)) as different:
        for cut, place in different:
            again = _restarted(refresher, place, cut.published)
            assert again.token("linear").generation in (1, 2), f"no complete token file after {cut.after}"
            if parse(cut.published).generation == 2:
                assert again.grant("linear").generation == 2, (
                    f"readers had a token that the power loss removed: {cut.after}"
                )
            boot = other_boot(again.home)
            done = again("run-once", "--json", prefix=boot)
            left = again.refresh_token("linear")
            assert left in (old, new), cut.after
            assert (left == new) is (done.outcome == "adopted" or again.grant("linear").generation == 2), cut.after
            assert done.outcome in (("not_due", "adopted") if left == new else ("not_due", "in_doubt")), cut.after
            if left == old and cut.sent:
                assert done.outcome == "in_doubt", f"the old token is not in doubt: {cut.after}"
            if done.outcome == "in_doubt":
                assert again("run-once", "--force", "--json", prefix=boot).outcome == "in_doubt"
            assert again.token("linear").generation == again.grant("linear").generation, cut.after
            assert again.leftovers() == [], cut.after
            outcomes.add((left == new, done.outcome))
    assert {(False, "not_due"), (False, "in_doubt"), (True, "not_due")} <= outcomes, (
        "a stage of the rotation is missing"
    )
    assert len(server.requests()) == requests, "something was sent after a power loss"
    assert refresher("run-once", "--force").code == 0
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


@pytest.mark.parametrize("call", ["import", "remove"])
@pytest.mark.parametrize("committing", [False, True])
def test_a_power_loss_at_any_step_of_an_import_or_a_removal_leaves_the_old_record_or_the_new(
    refresher: Command, own_oidc: Start, disk: Disk, call: str, committing: bool
) -> None:
    """If it failed, a power loss could leave an incomplete record, or remove what was reported as stored (I4)."""
    server = own_oidc()
    _live(refresher, server, "another disk")
    old = refresher.record("linear")
    arguments = ["remove", "linear"]
    if call == "import":
        fields = server.mint("public") | {"access_token": "an-imported-token", "expires_in": 3600}
        arguments = ["import", "linear", "--replace", "--from", str(refresher.write_import("new", fields))]
    cuts = _cuts(refresher, disk, server, *arguments, committing=committing)
    new = refresher.record("linear")
    assert type(new) is (Grant if call == "import" else Tombstone)
    found = []
    with closing(_different(disk, cuts)) as different:
        for cut, place in different:
            again = _restarted(refresher, place, cut.published)
            assert again.record("linear") == new or cut is not cuts[-1], "the reported record is lost"
            assert again("run-once", prefix=other_boot(again.home)).code == 0, cut.after
            found.append(again.record("linear"))
            assert again.leftovers() == [], cut.after
    assert set(map(str, found)) == {str(old), str(new)}, "a record between the old and the new one"
    assert len(server.requests()) == 1, "something was sent after a power loss"


_CALL = re.compile(
    r"^\d+ +(?P<call>\w+)\((?:\d+<(?P<open>[^>]*)>|[^\"]*\"(?P<path>[^\"]*)\")(?P<more>.*)\) += (?!-1 E(?!INP))"
)
_NAME = re.compile(r'"([^"]*)"')
_DIRECTORY = re.compile(r"\d+<([^>]*)>")


def _not_durable(trace: str, below: Path) -> dict[str, set[str]]:
    """Return what was not durable below a directory, at each moment when it had to be, by what POSIX guarantees.

    The content of a file is durable once the file is synced, its name once its directory is. ext4 guarantees more.
    """
    pending: set[str] = set()
    at: dict[str, set[str]] = {}
    for found in filter(None, map(_CALL.match, trace.splitlines())):
        call, path, more = found["call"], found["open"] or found["path"], found["more"]
        names = _NAME.findall(more)
        if found["open"] and call.endswith("at"):  # relative to an open directory
            path = f"{path}/{names[0]}"
        parent = str(Path(path).parent)
        if call == "connect":
            at.setdefault("the request is sent", {*pending})
        elif call in ("rename", "renameat"):
            renamed = names[0] if call == "rename" else f"{_DIRECTORY.findall(more)[0]}/{names[1]}"
            if renamed.endswith("grants/linear.json"):
                at.setdefault("the record is replaced", {path} & pending)
            if "tokens" in renamed:
                at.setdefault("the token is published", {*pending})
            pending |= {str(Path(renamed).parent)} | ({renamed} if path in pending else set())
            pending.discard(path)
        elif call in ("fsync", "unlink", "unlinkat"):
            pending.discard(path)
        elif call == "mkdir" or (call == "openat" and "O_EXCL" in more):
            pending.add(parent)
        elif call in ("pwrite64", "ftruncate"):
            pending.add(path)
    at["the result is reported"] = pending
    return {moment: {path for path in paths if path.startswith(str(below))} for moment, paths in at.items()}


@pytest.mark.parametrize("saved", ["in place", "in another file", "spilled"])
def test_nothing_is_sent_or_published_before_its_files_are_synced(refresher: Command, saved: str) -> None:
    """If it failed, a power loss on a file system that guarantees less than ext4 could cost a refresh token (I1, I2)."""
    need(no_strace())
    trace = refresher.home / "strace"
    deep = refresher.home / "deep"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(deep / "er/spill")
    traced = "openat,mkdir,fsync,pwrite64,ftruncate,rename,renameat,unlink,unlinkat,connect"
    fault = {"in another file": "ftruncate", "spilled": "rename"}.get(saved)
    faults = () if fault is None else ("-e", f"inject={fault}:error=EIO")
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        deep.mkdir(mode=0o700)
        prefix = ("strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={traced}", *faults)
        refresher("run-once", prefix=prefix)
    below = deep if saved == "spilled" else refresher.state / "grants"
    moments = _not_durable(trace.read_text(), below)
    expected = {"the request is sent", "the result is reported", "the record is replaced", "the token is published"}
    if saved == "spilled":
        expected -= {"the record is replaced"}
    assert moments.keys() == expected
    assert not any(moments.values()), moments


def test_recovery_makes_a_rename_durable_before_it_publishes(refresher: Command, own_oidc: Start, disk: Disk) -> None:
    """If it failed, a kill and then a power loss would cost the refresh token of a published access token (I2)."""
    server = own_oidc()
    _live(refresher, server, "another disk")
    # The first four sync the reserved space, the intent, the directory and the answer; the fifth is the directory again.
    killed = refresher.start("run-once", "--force", prefix=injecting("fsync", "signal=KILL:when=5"))
    assert refresher.finish(killed).code != 0
    assert (refresher.grant("linear").generation, refresher.leftovers()) == (2, ["linear.intent"])
    assert refresher("run-once").code == 0
    assert refresher.token("linear").generation == 2
    with disk.after_power_loss(disk.copy("cut")) as place:
        again = _restarted(refresher, place, (refresher.tokens / "linear.json").read_bytes())
        assert again.grant("linear").generation == 2
        assert again("run-once", "--json", prefix=other_boot(again.home)).outcome == "not_due"


def test_what_was_spilled_outlives_a_power_loss(refresher: Command, own_oidc: Start, disk: Disk) -> None:
    """If it failed, a power loss would cost the only copy of a refresh token (I6)."""
    server = own_oidc()
    _live(refresher, server, "another disk")
    spill = ("--spill-dir", str(disk.place / "deep/spill"))
    prefix = injecting("rename", "error=EIO")
    refresher.finish(refresher.start(*spill, "run-once", "--force", prefix=prefix))
    saved = list((disk.place / "deep/spill").iterdir())
    image = disk.copy("cut")
    # Mounted at the same path: an intent names the spill by its path.
    subprocess.run(["umount", str(disk.place)], check=True)
    disk.mount(image, disk.place)
    assert list((disk.place / "deep/spill").iterdir()) == saved
    done = refresher(*spill, "run-once", "--json", prefix=other_boot(refresher.home))
    assert (done.code, done.outcome, refresher.grant("linear").generation) == (0, "adopted", 2)
    assert refresher("run-once", "--force").code == 0
    assert server.log()["reused"] == 0
