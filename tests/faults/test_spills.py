"""New tokens that ``grants/`` cannot take: kept elsewhere, and brought home only where they fit."""

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from refresher.common.secret import Secret
from tests.conftest import need
from tests.support.command import Command, says, wait_until
from tests.support.fake_state import put
from tests.support.parts import injecting, mounted, no_strace
from tests.support.power import Disk, no_disk
from tests.support.token_server import TokenServer


@pytest.fixture
def disk(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """The state directory on an ext4 that can die, the tokens elsewhere."""
    need(no_disk())
    refresher.tokens = refresher.home / "tokens"
    refresher.environment["REFRESHER_TOKENS_DIR"] = str(refresher.tokens)
    with Disk(refresher.state, tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest.mark.parametrize("command", ["run-once", "run"])
@pytest.mark.parametrize("spill", ["takes it", "is full at first"])
def test_a_disk_that_dies_while_the_server_answers_loses_nothing(
    refresher: Command, disk: Disk, command: str, spill: str
) -> None:
    """If it failed, a disk that turns read-only in mid exchange, as ext4 does, would take the only copy (I6)."""
    memory = refresher.home / "memory"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(memory / "spill")
    filler = memory / "filler"
    full = spill == "is full at first"
    with TokenServer(lambda _: 3600, disk.die) as server, mounted(memory, "size=64k"):
        refresher.bring("linear", server.grant("client"))
        disk.settle()
        if full:
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(1024 * 1024))
        process = refresher.start(command)
        if full:
            assert says(process.stderr, "NOT SAVED YET"), "it gave up with the only copy in its memory"
            process.send_signal(signal.SIGTERM)
            assert says(process.stderr, "NOT SAVED YET" if command == "run-once" else "waiting for linear to finish")
            assert process.poll() is None
            filler.unlink()
        elif command == "run":
            wait_until((refresher.tokens / "linear.json").exists, "it has saved and published the token")
            process.send_signal(signal.SIGTERM)
        done = refresher.finish(process)
        assert done.code == (143 if full and command == "run-once" else 0), done.stderr
        assert refresher.token("linear").generation == 1
        assert len(list((memory / "spill").iterdir())) == 1
        # The dead disk has kept what was durable when it died, as after a power loss.
        assert refresher("run-once", "--json").outcome == "storage_failed"
        assert len(list((memory / "spill").iterdir())) == 1
        disk.revive()
        done = refresher("run-once", "--json")
        assert (done.code, done.outcome) == (0, "adopted"), done.stdout
        assert refresher.leftovers() == []
        assert list((memory / "spill").iterdir()) == []
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["client"]), server.reused) == (2, 0)


def _spilled(refresher: Command, server: TokenServer) -> Path:
    """Rotate once, and once more while nothing can be renamed; return where the new record is."""
    spill = refresher.home / "spill"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    refresher.bring("linear", server.grant("client"))
    assert refresher("run-once").code == 0
    refresher("run-once", "--force", prefix=injecting("rename", "error=EIO"))
    (spilled,) = spill.iterdir()
    return spilled


def test_what_was_spilled_is_adopted_only_where_it_fits(refresher: Command) -> None:
    """If it failed, a restored backup would be overwritten by a stranger's token, or the stranger's deleted (I6)."""
    need(no_strace())
    with TokenServer(lambda _: 3600) as server:
        spilled = _spilled(refresher, server)
        content = spilled.read_bytes()
        backup = refresher.grant("linear")
        other = server.grant("client")["refresh_token"]
        refresher.vault.learn(other)
        put(
            refresher.state / "grants/linear.json",
            msgspec.structs.replace(backup, grant_id="another", refresh_token=Secret(other)),
        )
        for path in (refresher.state / "grants").glob("linear.next*"):
            path.unlink()
        done = refresher("run-once", "--json")
        assert done.outcome == "not_due", done.stdout
        assert refresher.refresh_token("linear") == other
        (aside,) = spilled.parent.iterdir()
        assert aside.name.startswith(f"{spilled.name}.aside.")
        assert aside.read_bytes() == content
        assert str(aside) in done.stderr


def test_an_import_over_a_spilled_token_takes_its_place_and_its_memory(refresher: Command) -> None:
    """If it failed, a person's new login would be replaced by an older one from the spill directory, days later."""
    need(no_strace())
    with TokenServer(lambda _: 3600) as server:
        spilled = _spilled(refresher, server)
        brought = server.grant("client")
        refresher.import_grant("linear", brought, "--replace")
        assert refresher.refresh_token("linear") == brought["refresh_token"]
        assert refresher.grant("linear").generation == 3
        assert (list(spilled.parent.iterdir()), refresher.leftovers()) == ([], [])
        assert refresher("run-once").code == 0
        assert (len(server.asked["client"]), server.reused) == (3, 0)


def test_a_spilled_token_that_is_out_of_reach_is_given_up_only_for_a_new_login(refresher: Command) -> None:
    """If it failed, a spill on a disk that is gone would stop a grant for good, or be given up for an import in vain."""
    need(no_strace())
    with TokenServer(lambda _: 3600) as server:
        spilled = _spilled(refresher, server)
        for path in (refresher.state / "grants").glob("linear.next*"):
            path.unlink()
        away = spilled.rename(refresher.home / "away.import.json")
        done = refresher("run-once", "--json")
        assert (done.code, done.outcome) == (4, "storage_failed")
        assert "refresher login linear" in done.results["linear"]["detail"]
        refresher.bring("notion", held := server.grant("another"))
        in_vain = refresher.write_import("linear", held)
        assert refresher("import", "linear", "--replace", "--from", str(in_vain)).code == 2
        away.rename(spilled)
        assert refresher("run-once", "linear").code == 0, "a refused import has cost the spilled token"
        refresher("run-once", "--force", "linear", prefix=injecting("rename", "error=EIO"))
        for path in (*(refresher.state / "grants").glob("linear.next*"), *spilled.parent.iterdir()):
            path.unlink()
        old = refresher.grant("linear").refresh_token
        assert old is not None
        refresher.import_grant("linear", server.grant("client"), "--replace")
        assert old.fingerprint() in refresher.grant("linear").spent, "it could be imported again"
        assert refresher("run-once", "linear").code == 0
        assert refresher.leftovers() == []
        assert refresher("remove", "linear").code == 0
        assert server.reused == 0


def test_a_spilled_copy_goes_only_once_the_record_is_sure_to_stay(refresher: Command) -> None:
    """If it failed, a disk that forgets what it has renamed would be trusted with the only copy (I6)."""
    need(no_strace())
    spill = refresher.home / "spill"
    spill.mkdir(mode=0o700)
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        # The rename is done, and cannot be made durable; nor can another file.
        refresher("run-once", prefix=injecting("fsync", "error=EIO:when=5..6"))
        assert refresher.grant("linear").generation == 1
        (spilled,) = spill.iterdir()
        # What is synced after an error may be synced in appearance only: it is written anew.
        for fault in ("error=EIO", "error=EIO:when=2+"):
            assert refresher("run-once", prefix=injecting("fsync", fault)).code == 4
            assert list(spill.iterdir()) == [spilled]
        assert refresher("run-once").code == 0
        assert (list(spill.iterdir()), refresher.leftovers()) == ([], [])
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["client"]), server.reused) == (2, 0)
