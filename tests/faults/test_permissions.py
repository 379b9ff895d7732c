"""Files with wrong owners or modes, links, FIFOs and directories in place of own files: reported in one line."""

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from refresher.storage import files
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, running, stopped
from tests.support.parts import no_mounts
from tests.support.token_server import TokenServer

Put = Callable[[Path, Path], object]

OTHER_USER = 12345


def _other_owner(path: Path, _: Path) -> None:
    os.chown(path, OTHER_USER, -1)


def _mode(mode: int) -> Put:
    return lambda path, _: path.chmod(mode)


def _linked(path: Path, target: Path) -> None:
    """Replace ``path`` with a link to ``target``, or move it there first if ``target`` does not exist."""
    if target.exists():
        path.unlink(missing_ok=True)
    else:
        path.rename(target)
    path.symlink_to(target)


def _hard_linked(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    os.link(target, path)


def _fifo(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _directory(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


FILES = [
    ("grants/NAME.json", _mode(0o644), "invalid_grant_file", "chmod 600"),
    ("grants/NAME.json", _mode(0o620), "invalid_grant_file", "chmod 600"),
    ("grants/NAME.json", _other_owner, "invalid_grant_file", f"belongs to user {OTHER_USER}"),
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
    # The intent says whether a request was sent. If it was replaced, the request counts as sent.
    ("grants/NAME.intent", _linked, "in_doubt", ".intent.aside"),
    ("grants/NAME.intent", _fifo, "in_doubt", ".intent.aside"),
    ("tokens/NAME.json", _linked, "rotated", ""),
    ("tokens/NAME.json", _hard_linked, "rotated", ""),
    ("tokens/NAME.json", _fifo, "rotated", ""),
    ("tokens/NAME.json", _directory, "storage_failed", "saved, but cannot publish"),
    ("tokens/.NAME.json.new", _linked, "rotated", ""),
    ("tokens/.NAME.json.new", _hard_linked, "rotated", ""),
]


def test_a_replaced_file_is_not_followed_and_stops_only_its_own_grant(refresher: Command) -> None:
    """If it failed, a foreign file would be used, the target of a link overwritten, or every grant stopped."""
    need(no_mounts())  # chown needs root as well
    aside = refresher.home / "tokens"  # secrets are allowed here: records are moved here
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
                (aside / name).write_bytes(b"target")
            put(refresher.state / where.replace("NAME", name), aside / name)
            targets[name] = (aside / name).read_bytes()
        done = refresher("run-once", "--force", "--json")
    assert done.results["untouched"]["outcome"] == "rotated"
    assert {name: (aside / name).read_bytes() for name in names} == targets, "the target of a link was changed"
    lines = done.stderr.splitlines()
    for name, (where, _, outcome, words) in zip(names, FILES, strict=True):
        case = f"{where}, {outcome} {words}"
        assert done.results[name]["outcome"] == outcome, case
        reported = [line for line in lines if f"{name}: " in line]
        assert words in " ".join((*reported, done.results[name]["detail"])), case
        assert len(reported) <= (outcome != "rotated") + ("aside" in words), f"not one line: {case}: {reported}"
        sent = outcome == "rotated" or "saved, but" in words
        assert len(server.asked[name]) == (2 if sent else 1), case
        if sent:
            assert refresher.refresh_token(name) != old[name], case
            assert _is_private(refresher.state / f"grants/{name}.json"), case
        if outcome == "rotated":
            assert _is_private(refresher.state / f"tokens/{name}.json"), case
    assert server.reused == 0


@pytest.mark.parametrize("target", ["grants", "", "tokens"])
def test_a_link_of_another_user_in_place_of_demands_shares_nothing(refresher: Command, target: str) -> None:
    """If it failed, an agent that can write above demands/ could give its group access to the grants."""
    need(no_mounts())
    demands = refresher.home / "shared/demands"
    refresher.environment |= {"REFRESHER_TOKENS_GROUP": "12346", "REFRESHER_DEMANDS_DIR": str(demands)}
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("linear"))
        assert refresher("run-once").code == 0
        before = _state_of(refresher.state)
        demands.rmdir()
        demands.symlink_to(refresher.state / target)
        os.chown(demands, OTHER_USER, OTHER_USER, follow_symlinks=False)
        done = refresher("run-once", "--force", "--json")
        assert done.outcome == "rotated", "tokens rotate without demands"
        assert f"cannot accept demands from agents: {demands} is a link of user {OTHER_USER}" in done.stderr
        assert _state_of(refresher.state) == before
        # A link of the own user is allowed.
        os.chown(demands, os.geteuid(), -1, follow_symlinks=False)
        if target == "tokens":
            demands.unlink()
            demands.symlink_to(refresher.home / "elsewhere")
            (refresher.home / "elsewhere").mkdir()
            assert "demands" not in refresher("run-once", "--force").stderr
            assert stat.S_IMODE((refresher.home / "elsewhere").stat().st_mode) == 0o3770


def test_a_link_of_another_user_in_place_of_demands_stops_neither_run_nor_an_import(refresher: Command) -> None:
    """If it failed, an agent that can write above demands/ could let tokens expire, or have a new login thrown away."""
    need(no_mounts())
    demands = refresher.home / "shared/demands"
    refresher.environment |= {"REFRESHER_TOKENS_GROUP": "12346", "REFRESHER_DEMANDS_DIR": str(demands)}
    demands.parent.mkdir()
    demands.symlink_to(refresher.state / "grants")
    os.chown(demands, OTHER_USER, OTHER_USER, follow_symlinks=False)
    trouble = f"cannot accept demands from agents: {demands} is a link of user {OTHER_USER}"
    with TokenServer(lambda _: 3600) as server:
        path = refresher.write_import("linear", server.grant("linear"))
        done = refresher("import", "linear", "--from", str(path))
        assert (done.code, trouble in done.stderr) == (0, True), done.stderr
        with running(refresher) as daemon:
            wait_until(lambda: published(refresher) == 1, "the grant rotates")
            assert trouble in stopped(refresher, daemon)
    assert _state_of(refresher.state)["grants"][0] & 0o777 == 0o700


def test_nothing_is_removed_through_a_link_of_another_user_in_place_of_demands(refresher: Command) -> None:
    """If it failed, an agent that can write above demands/ could have files of refresher's user removed."""
    need(no_mounts())
    demands, pages = refresher.home / "shared/demands", refresher.home / "pages"
    refresher.environment |= {"REFRESHER_TOKENS_GROUP": "12346", "REFRESHER_DEMANDS_DIR": str(demands)}
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("linear"))
        assert refresher("run-once").code == 0
        pages.mkdir()
        for generation in range(5):
            (pages / f"linear.{generation}").write_text("a page of a manual")
        demands.rmdir()
        demands.symlink_to(pages)
        os.chown(demands, OTHER_USER, OTHER_USER, follow_symlinks=False)
        for arguments in ((), ("--force",), ()):
            assert refresher("run-once", *arguments).code == 0
        with running(refresher) as daemon:
            heard(daemon, "is a link of user")
            stopped(refresher, daemon)
        assert len(list(pages.iterdir())) == 5
        assert len(server.asked["linear"]) == 2, "a file that is no demand rotates nothing"


def _state_of(state: Path) -> dict[str, tuple[int, int]]:
    places = (state, state / "grants", state / "tokens")
    return {path.name: (path.stat().st_mode, path.stat().st_gid) for path in places}


def test_an_unusable_lock_stops_one_grant_of_a_daemon_and_is_reported_once(refresher: Command) -> None:
    """If it failed, one unusable lock would stop the rotation of every grant, or fill the log."""
    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "notion"):
            refresher.bring(name, server.grant(name))
        lock = refresher.state / "grants/linear.lock"
        _directory(lock, lock)
        process = refresher.start("run")
        try:
            wait_until(lambda: refresher.grant("notion").generation == 1, "the other grant rotates")
            # Once a second demand is settled, the daemon has seen the unusable lock again.
            (refresher.state / "demands/notion.0").touch()
            wait_until(lambda: not list((refresher.state / "demands").iterdir()), "the demand is settled")
            lock.rmdir()
            wait_until(lambda: refresher.grant("linear").generation == 1, "the grant rotates")
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


def test_a_record_that_others_can_read_is_not_replaced(refresher: Command) -> None:
    """If it failed, the list of spent tokens would be lost, and a spent one could be imported again (I3)."""
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
        ("grants", _other_owner, f"belongs to user {OTHER_USER}"),
        ("grants", _linked, "symbolic link"),
        ("tokens", _mode(0o777), "chmod o-w"),
        ("tokens", _mode(0o1777), "chmod o-w"),
        ("tokens", _other_owner, f"belongs to user {OTHER_USER}"),
        ("demands", _mode(0o777), "chmod o-w"),
    ],
)
def test_a_directory_that_others_can_change_is_refused_in_one_line(
    refresher: Command, where: str, put: Put, words: str
) -> None:
    """If it failed, others could read refresh tokens, or agents would trust tokens of others."""
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
    "put", [_mode(0o755), _other_owner, _linked, _fifo], ids=["readable", "other owner", "link", "no directory"]
)
def test_a_spill_directory_that_others_can_read_is_reported_before_it_is_needed(refresher: Command, put: Put) -> None:
    """If it failed, the problem would be found with the only copy of a token in memory, or another user could read it."""
    need(no_mounts())
    spill = refresher.home / "spill"
    if put is not _fifo:
        spill.mkdir(mode=0o700)
    put(spill, refresher.home / "target")
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    fields = {"token_endpoint": "https://as.example/token", "client_id": "client", "server_url": "https://mcp.example"}
    done = refresher.import_grant("linear", fields | {"refresh_token": "an-unused-refresh-token"})
    assert f"{spill} cannot store a token" in done.stderr


def test_two_daemons_with_different_groups_do_not_publish_again_and_again(
    refresher: Command,
) -> None:
    """If it failed, a forgotten second daemon would cause all tokens to be published and read again and again."""
    need(None if os.geteuid() == 0 else "chown to any group needs root")
    path, ours, theirs = refresher.tokens / "linear.json", OTHER_USER, OTHER_USER + 1
    demands, made = refresher.state / "demands", refresher.directories

    def is_shared(group: int) -> bool:
        return path.exists() and (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group, 0o640)

    def publish_theirs(mode: int = 0o640) -> None:
        with made.opened_tokens() as tokens:
            files.replace(tokens, path.name, path.read_bytes(), mode=mode, group=theirs)

    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "notion"):
            refresher.bring(name, server.grant(name))
        with running(refresher, options=("--tokens-group", str(ours))) as daemon:
            wait_until(lambda: published(refresher) == 1 and is_shared(ours), "the token is published")
            publish_theirs()
            wait_until(lambda: is_shared(ours), "the first change is undone")
            publish_theirs()
            for generation in range(7, 10):
                (demands / f"notion.{generation}").touch()
                wait_until(lambda: not list(demands.iterdir()), "the daemon lists the demands")
            assert is_shared(theirs)
            publish_theirs(mode=0o644)
            wait_until(lambda: is_shared(ours), "a file that others can read is always repaired")
            publish_theirs()
            (demands / "linear.1").touch()
            wait_until(lambda: published(refresher) == 2 and is_shared(ours), "the next token has the right group")
            log = stopped(refresher, daemon)
            assert log.count("does another refresher run with another --tokens-group?") == 1, log
