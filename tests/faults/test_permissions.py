"""Wrong owners, wide modes, links and other things where our own files should be: one line, and nothing is sent."""

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from refresher.storage import files
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import published, running, stopped
from tests.support.parts import no_mounts
from tests.support.token_server import TokenServer

Put = Callable[[Path, Path], object]

STRANGER = 12345


def _other_owner(path: Path, _: Path) -> None:
    os.chown(path, STRANGER, -1)


def _mode(mode: int) -> Put:
    return lambda path, _: path.chmod(mode)


def _linked(path: Path, precious: Path) -> None:
    """Have a link in the place of ``path``: to something precious, or to itself where that is not there yet."""
    if precious.exists():
        path.unlink(missing_ok=True)
    else:
        path.rename(precious)
    path.symlink_to(precious)


def _hard_linked(path: Path, precious: Path) -> None:
    path.unlink(missing_ok=True)
    os.link(precious, path)


def _fifo(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _directory(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


FILES = [
    ("grants/NAME.json", _mode(0o644), "invalid_grant_file", "chmod 600"),
    ("grants/NAME.json", _mode(0o620), "invalid_grant_file", "chmod 600"),
    ("grants/NAME.json", _other_owner, "invalid_grant_file", f"belongs to user {STRANGER}"),
    ("grants/NAME.json", _linked, "invalid_grant_file", "symbolic link"),
    ("grants/NAME.json", _fifo, "invalid_grant_file", "not a regular file"),
    ("grants/NAME.json", _directory, "invalid_grant_file", "not a regular file"),
    ("grants/NAME.lock", _linked, "storage_failed", "symbolic link"),
    ("grants/NAME.lock", _directory, "storage_failed", "cannot lock"),
    ("grants/NAME.lock", _hard_linked, "rotated", ""),
    ("grants/NAME.next", _linked, "rotated", ".next.aside"),
    ("grants/NAME.next", _fifo, "rotated", ".next.aside"),
    ("grants/NAME.next", _hard_linked, "rotated", ".next.aside"),
    ("grants/NAME.next.1", _linked, "rotated", ".next.1.aside"),
    # Somebody has changed what tells whether a request has left: it counts as sent.
    ("grants/NAME.intent", _linked, "in_doubt", ".intent.aside"),
    ("grants/NAME.intent", _fifo, "in_doubt", ".intent.aside"),
    ("tokens/NAME.json", _linked, "rotated", ""),
    ("tokens/NAME.json", _hard_linked, "rotated", ""),
    ("tokens/NAME.json", _fifo, "rotated", ""),
    ("tokens/NAME.json", _directory, "storage_failed", "saved, but cannot publish"),
    ("tokens/.NAME.json.new", _linked, "rotated", ""),
    ("tokens/.NAME.json.new", _hard_linked, "rotated", ""),
]


def test_what_is_not_ours_alone_is_not_followed_and_stops_its_own_grant_at_most(refresher: Command) -> None:
    """If it failed, a stranger's file would be used, a link's target overwritten, or one odd file stop every login."""
    need(no_mounts())  # to give a file away needs root as well
    aside = refresher.home / "tokens"  # where secrets may lie: records are moved there
    aside.mkdir()
    names = [f"grant-{number}" for number in range(len(FILES))]
    with TokenServer(lambda _: 3600) as server:
        for name in [*names, "untouched"]:
            refresher.bring(name, server.grant(name))
        assert refresher("run-once").code == 0
        old = {name: refresher.refresh_token(name) for name in names}
        targets = {}
        for name, (where, put, _, _) in zip(names, FILES, strict=True):
            if put is not _linked or where != "grants/NAME.json":
                (aside / name).write_bytes(b"precious")
            put(refresher.state / where.replace("NAME", name), aside / name)
            targets[name] = (aside / name).read_bytes()
        done = refresher("run-once", "--force", "--json")
    assert done.results["untouched"]["outcome"] == "rotated"
    assert {name: (aside / name).read_bytes() for name in names} == targets, "the target of a link was written"
    lines = done.stderr.splitlines()
    for name, (where, _, outcome, words) in zip(names, FILES, strict=True):
        case = f"{where}, {outcome} {words}"
        assert done.results[name]["outcome"] == outcome, case
        told = [line for line in lines if f"{name}: " in line]
        assert words in " ".join((*told, done.results[name]["detail"])), case
        assert len(told) <= (outcome != "rotated") + ("aside" in words), f"not one line: {case}: {told}"
        sent = outcome == "rotated" or "saved, but" in words
        assert len(server.asked[name]) == (2 if sent else 1), case
        if sent:
            assert refresher.refresh_token(name) != old[name], case
            assert _is_private(refresher.state / f"grants/{name}.json"), case
        if outcome == "rotated":
            assert _is_private(refresher.state / f"tokens/{name}.json"), case
    assert server.reused == 0


@pytest.mark.parametrize("target", ["grants", "", "tokens"])
def test_a_strangers_link_in_the_place_of_demands_shares_nothing(refresher: Command, target: str) -> None:
    """If it failed, an agent that can write above demands/ could have refresher open its grants to the agents' group."""
    need(no_mounts())
    demands = refresher.home / "shared/demands"
    refresher.environment |= {"REFRESHER_TOKENS_GROUP": "12346", "REFRESHER_DEMANDS_DIR": str(demands)}
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("linear"))
        assert refresher("run-once").code == 0
        before = _state_of(refresher.state)
        demands.rmdir()
        demands.symlink_to(refresher.state / target)
        os.chown(demands, STRANGER, STRANGER, follow_symlinks=False)
        done = refresher("run-once", "--force", "--json")
        assert done.outcome == "rotated", "tokens rotate without demands"
        assert f"cannot accept demands from agents: {demands} is a link of user {STRANGER}" in done.stderr
        assert _state_of(refresher.state) == before
        # A link of its own is a person's wish.
        os.chown(demands, os.geteuid(), -1, follow_symlinks=False)
        if target == "tokens":
            demands.unlink()
            demands.symlink_to(refresher.home / "elsewhere")
            (refresher.home / "elsewhere").mkdir()
            assert "demands" not in refresher("run-once", "--force").stderr
            assert stat.S_IMODE((refresher.home / "elsewhere").stat().st_mode) == 0o3770


def _state_of(state: Path) -> dict[str, tuple[int, int]]:
    places = (state, state / "grants", state / "tokens")
    return {path.name: (path.stat().st_mode, path.stat().st_gid) for path in places}


def test_a_lock_that_cannot_be_had_stops_one_grant_of_a_daemon_and_is_told_once(refresher: Command) -> None:
    """If it failed, one odd file would stop the rotation of every grant, or fill the log."""
    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "notion"):
            refresher.bring(name, server.grant(name))
        lock = refresher.state / "grants/linear.lock"
        _directory(lock, lock)
        process = refresher.start("run")
        try:
            wait_until(lambda: refresher.grant("notion").generation == 1, "the other one is rotated")
            # A second demand is answered: it has looked around since, and come by the odd one again.
            (refresher.state / "demands/notion.0").touch()
            wait_until(lambda: not list((refresher.state / "demands").iterdir()), "it has looked around")
            lock.rmdir()
            wait_until(lambda: refresher.grant("linear").generation == 1, "it goes on by itself")
            process.send_signal(signal.SIGTERM)
            done = refresher.finish(process)
        finally:
            process.kill()
    assert done.code == 0
    assert done.stderr.count("linear: storage_failed: cannot lock") == 1, done.stderr
    assert (len(server.asked["linear"]), len(server.asked["notion"])) == (1, 1)


def _is_private(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600


def test_a_record_that_others_could_read_is_not_replaced_either(refresher: Command) -> None:
    """If it failed, a mode would cost what is remembered of spent tokens, and an old one could be imported again (I3)."""
    with TokenServer(lambda _: 3600) as server:
        spent = server.grant("client")
        refresher.bring("linear", spent)
        assert refresher("run-once").code == 0
    record = refresher.state / "grants/linear.json"
    record.chmod(0o644)
    for _ in range(2):
        path = str(refresher.write_import("again", spent))
        done = refresher("import", "linear", "--replace", "--from", path)
        assert (done.code, len(done.stderr.splitlines())) == (2, 1)
        record.chmod(0o600)
    assert "already spent" in done.stderr
    assert refresher.grant("linear").generation == 1


@pytest.mark.parametrize(
    ("where", "put", "words"),
    [
        ("grants", _mode(0o750), "chmod 700"),
        ("grants", _mode(0o1777), "chmod 700"),
        ("grants", _other_owner, f"belongs to user {STRANGER}"),
        ("grants", _linked, "symbolic link"),
        ("tokens", _mode(0o777), "chmod o-w"),
        ("tokens", _mode(0o1777), "chmod o-w"),
        ("tokens", _other_owner, f"belongs to user {STRANGER}"),
        ("demands", _mode(0o777), "chmod o-w"),
    ],
)
def test_a_directory_that_is_not_ours_alone_is_refused_in_one_line(
    refresher: Command, where: str, put: Put, words: str
) -> None:
    """If it failed, refresh tokens would be written where others can take them, or agents trust what others put there."""
    need(no_mounts())
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        put(refresher.state / where, refresher.home / "grants")
        for arguments in (("run-once",), ("run",)):
            done = refresher(*arguments)
            assert (done.code, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert words in done.stderr
    assert not server.asked


@pytest.mark.parametrize(
    "put", [_mode(0o755), _other_owner, _linked, _fifo], ids=["others look in", "other owner", "link", "no directory"]
)
def test_a_spill_directory_that_is_not_ours_alone_is_told_before_it_is_needed(refresher: Command, put: Put) -> None:
    """If it failed, it would be found out with the only copy of a token in memory, or another user be given it."""
    need(no_mounts())
    spill = refresher.home / "spill"
    if put is not _fifo:
        spill.mkdir(mode=0o700)
    put(spill, refresher.home / "elsewhere")
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    fields = {"token_endpoint": "https://as.example/token", "client_id": "client", "server_url": "https://mcp.example"}
    done = refresher.import_grant("linear", fields | {"refresh_token": "a-refresh-token-of-nobody"})
    assert f"{spill} cannot store a token" in done.stderr


def test_two_refreshers_that_share_with_different_groups_do_not_undo_each_others_work_for_ever(
    refresher: Command,
) -> None:
    """If it failed, a forgotten second daemon would have all tokens published, and read, again and again."""
    need(None if os.geteuid() == 0 else "giving files to any group needs root")
    path, ours, theirs = refresher.tokens / "linear.json", STRANGER, STRANGER + 1
    demands = refresher.state / "demands"

    def is_shared(group: int) -> bool:
        return path.exists() and (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group, 0o640)

    def publish_theirs(mode: int = 0o640) -> None:
        files.replace(path, path.read_bytes(), mode=mode, group=theirs)

    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "notion"):
            refresher.bring(name, server.grant(name))
        with running(refresher, options=("--tokens-group", str(ours))) as daemon:
            wait_until(lambda: published(refresher) == 1 and is_shared(ours), "it is published")
            publish_theirs()
            wait_until(lambda: is_shared(ours), "what may have been an accident is mended")
            publish_theirs()
            for generation in range(7, 10):
                (demands / f"notion.{generation}").touch()
                wait_until(lambda: not list(demands.iterdir()), "it has looked around")
            assert is_shared(theirs)
            publish_theirs(mode=0o644)
            wait_until(lambda: is_shared(ours), "what others could read is never left so")
            publish_theirs()
            (demands / "linear.1").touch()
            wait_until(
                lambda: published(refresher) == 2 and is_shared(ours), "the next token is shared as it should be"
            )
            said = stopped(refresher, daemon)
            assert said.count("does another refresher run with another --tokens-group?") == 1, said
