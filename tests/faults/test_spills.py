"""New records that cannot be written to ``grants/``: they are spilled, and adopted only if they fit."""

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from refresher.common.secret import Secret
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard
from tests.support.fake_state import put
from tests.support.parts import injecting, mounted, no_strace
from tests.support.power import Disk, no_disk
from tests.support.token_server import TokenServer


@pytest.fixture
def disk(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """The state directory on an ext4 that can fail; the tokens are on another disk."""
    need(no_disk())
    refresher.tokens = refresher.home / "tokens"
    refresher.environment["REFRESHER_TOKENS_DIR"] = str(refresher.tokens)
    with Disk(refresher.state, tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest.mark.parametrize("command", ["run-once", "run"])
@pytest.mark.parametrize("spill", ["has space", "is full at first"])
def test_a_disk_that_fails_during_the_exchange_loses_no_token(
    refresher: Command, disk: Disk, command: str, spill: str
) -> None:
    """If it failed, a disk that becomes read-only during an exchange, as ext4 does, would lose the only copy (I6)."""
    memory = refresher.home / "memory"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(memory / "spill")
    filler = memory / "filler"
    full = spill == "is full at first"
    with TokenServer(lambda _: 3600, disk.fail) as server, mounted(memory, "size=64k"):
        refresher.bring("linear", server.grant("client"))
        disk.settle()
        if full:
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(1024 * 1024))
        process = refresher.start(command)
        if full:
            heard(process, "NOT SAVED YET")
            process.send_signal(signal.SIGTERM)
            heard(process, "NOT SAVED YET" if command == "run-once" else "waiting for linear to finish")
            assert process.poll() is None
            filler.unlink()
        elif command == "run":
            wait_until((refresher.tokens / "linear.json").exists, "the token is saved and published")
            process.send_signal(signal.SIGTERM)
        done = refresher.finish(process)
        assert done.code == (143 if full and command == "run-once" else 0), done.stderr
        assert refresher.token("linear").generation == 1
        assert len(list((memory / "spill").iterdir())) == 1
        # The failed disk still has what was durable when it failed, as after a power loss.
        assert refresher("run-once", "--json").outcome == "storage_failed"
        assert len(list((memory / "spill").iterdir())) == 1
        disk.repair()
        done = refresher("run-once", "--json")
        assert (done.code, done.outcome) == (0, "adopted"), done.stdout
        assert refresher.leftovers() == []
        assert list((memory / "spill").iterdir()) == []
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["client"]), server.reused) == (2, 0)


def _spilled(refresher: Command, server: TokenServer) -> Path:
    """Rotate twice, the second time while every rename fails; return the spilled record."""
    spill = refresher.home / "spill"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    refresher.bring("linear", server.grant("client"))
    assert refresher("run-once").code == 0
    refresher("run-once", "--force", prefix=injecting("rename", "error=EIO"))
    (spilled,) = spill.iterdir()
    return spilled


def test_a_spilled_record_is_adopted_only_if_it_fits(refresher: Command) -> None:
    """If it failed, a token of another grant would replace the restored one, or would be deleted (I6)."""
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


def test_an_import_replaces_a_spilled_record(refresher: Command) -> None:
    """If it failed, an older login from the spill directory would replace a new one, days later."""
    need(no_strace())
    with TokenServer(lambda _: 3600) as server:
        spilled = _spilled(refresher, server)
        imported = server.grant("client")
        refresher.import_grant("linear", imported, "--replace")
        assert refresher.refresh_token("linear") == imported["refresh_token"]
        assert refresher.grant("linear").generation == 3
        assert (list(spilled.parent.iterdir()), refresher.leftovers()) == ([], [])
        assert refresher("run-once").code == 0
        assert (len(server.asked["client"]), server.reused) == (3, 0)


def test_a_missing_spill_is_given_up_only_for_a_valid_import(refresher: Command) -> None:
    """If it failed, a spill on a missing disk would stop a grant for ever, or be given up for a refused import."""
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
        refused = refresher.write_import("linear", held)
        assert refresher("import", "linear", "--replace", "--from", str(refused)).code == 2
        away.rename(spilled)
        assert refresher("run-once", "linear").code == 0, "a refused import has removed the spilled token"
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


def test_a_spilled_copy_is_removed_only_once_the_record_is_durable(refresher: Command) -> None:
    """If it failed, the only copy would be on a disk that can lose a rename (I6)."""
    need(no_strace())
    spill = refresher.home / "spill"
    spill.mkdir(mode=0o700)
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("client"))
        # The rename succeeds, but neither it nor another file can be made durable.
        refresher("run-once", prefix=injecting("fsync", "error=EIO:when=5..6"))
        assert refresher.grant("linear").generation == 1
        (spilled,) = spill.iterdir()
        # After an error, fsync may succeed without writing the data: the record is written again.
        for fault in ("error=EIO", "error=EIO:when=2+"):
            assert refresher("run-once", prefix=injecting("fsync", fault)).code == 4
            assert list(spill.iterdir()) == [spilled]
        assert refresher("run-once").code == 0
        assert (list(spill.iterdir()), refresher.leftovers()) == ([], [])
        assert refresher("run-once", "--force").code == 0
        assert (len(server.asked["client"]), server.reused) == (2, 0)
