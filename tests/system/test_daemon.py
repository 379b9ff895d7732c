"""The daemon notices changes of grants, demands, token files and directories, and survives damage to them."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from refresher.daemon.directory_watch import FULL_SCAN_INTERVAL
from refresher.grants.record import Grant
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, stopped
from tests.support.oidc import OIDC
from tests.support.unreachable import LIVE

Daemon = Callable[..., subprocess.Popen[str]]


def test_the_first_line_names_the_watched_directories(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a person could not see that daemon and agents use different directories."""
    refresher.bring("linear", LIVE)
    refresher.bring("gone", LIVE | {"refresh_token": "another-refresh-token"})
    refresher("remove", "gone")
    process = daemon()
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "watching 1 grant in " in line, "a removed grant is counted"
    for directory in ("grants", "tokens", "demands"):
        assert str(refresher.state / directory) in line


def test_imported_changed_removed_and_reauthorized_grants_are_noticed(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, the daemon would have to be restarted for each new login."""
    server = own_oidc()
    process = daemon()
    wait_until((refresher.state / "grants").is_dir, "the daemon is up")
    refresher.import_grant("linear", server.mint("public"))
    wait_until(lambda: published(refresher) == 1, "the imported grant has its first token")
    server.revoke(server.last_grant_id)
    assert refresher("run-once", "--force").code == 3
    assert heard(process, "linear: reauthorization_required"), "a failure in another process was not logged"
    refresher.import_grant("linear", server.mint("public"), "--replace")
    wait_until(lambda: published(refresher) == 3, "the reauthorized grant is rotated")
    assert refresher.token("linear").state == "active"
    refresher("remove", "linear")
    assert refresher.token("linear").state == "removed"
    refresher.import_grant("linear", server.mint("basic"))
    wait_until(lambda: published(refresher) == 5, "the grant that came back is rotated")
    assert server.log()["reused"] == 0


def test_a_demand_causes_a_rotation_and_an_outdated_one_a_new_token_file(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, an agent with a revoked token would wait for the next scheduled rotation."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "the grant is rotated")
    wait_until(lambda: not list((refresher.state / "demands").iterdir()), "the demand is removed")
    before = (refresher.state / "tokens/linear.json").stat().st_ino
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: (refresher.state / "tokens/linear.json").stat().st_ino != before, "it is published again")
    assert published(refresher) == 2
    assert len(server.requests()) == 2


def test_the_demands_directory_may_be_a_link(refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]) -> None:
    """If it failed, a demand in a linked directory would be noticed only after half a minute."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    real = refresher.home / "elsewhere"
    (refresher.state / "demands").rename(real)
    (refresher.state / "demands").symlink_to(real)
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    (real / "linear.1").touch()
    # Less than the interval between two full scans, which would also find it.
    wait_until(lambda: published(refresher) == 2, "the grant is rotated", 0.7 * FULL_SCAN_INTERVAL)


def test_a_deleted_demands_directory_is_created_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, no agent could demand a rotation until the next scheduled one."""
    refresher.bring("linear", LIVE)
    process = daemon()
    heard(process, "watching 1 grant")
    (refresher.state / "demands").rmdir()
    wait_until((refresher.state / "demands").is_dir, "the directory exists again", 0.7 * FULL_SCAN_INTERVAL)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing reports a change in place")
def test_a_change_in_place_is_noticed_at_once(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a token file or a record that was edited by hand would stay so for half a minute."""
    refresher.bring("linear", LIVE)
    process = daemon()
    heard(process, "watching 1 grant")
    token, record = (refresher.state / directory / "linear.json" for directory in ("tokens", "grants"))
    whole = token.read_bytes()
    with token.open("r+b") as file:
        file.truncate(5)
    wait_until(lambda: token.read_bytes() == whole, "it is published again", 0.7 * FULL_SCAN_INTERVAL)
    record.chmod(0o644)
    assert heard(process, "linear: invalid_grant_file")
    record.chmod(0o600)
    with token.open("r+b") as file:
        file.truncate(5)
    wait_until(lambda: token.read_bytes() == whole, "the record is used again", 0.7 * FULL_SCAN_INTERVAL)


def test_a_deleted_or_damaged_token_file_is_published_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, agents would have no token until the next rotation."""
    refresher.bring("linear", LIVE)
    daemon()
    path = refresher.state / "tokens/linear.json"
    whole = path.read_bytes()
    path.unlink()
    wait_until(path.exists, "the token is published again")
    path.with_name("other").write_bytes(b"{}")
    path.with_name("other").rename(path)
    wait_until(lambda: path.read_bytes() == whole, "the token is published again")


def test_a_failed_publication_is_retried_with_pauses(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a full disk would cause endless attempts, and fill the log."""
    refresher.bring("linear", LIVE)
    # A directory in the place of the token file cannot be replaced.
    path = refresher.state / "tokens/linear.json"
    path.unlink()
    path.mkdir()
    process = daemon()
    heard(process, "storage_failed")
    path.rmdir()
    wait_until(path.is_file, "the token is published")
    assert isinstance(refresher.record("linear"), Grant)
    assert "storage_failed" not in stopped(refresher, process)


def test_a_damaged_grant_file_is_logged_once_and_other_grants_rotate(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, one damaged file would end the rotation of all grants, or fill the log."""
    server = own_oidc(accessTokenTtl=4)
    refresher.bring("broken", LIVE)
    refresher.import_grant("linear", server.mint("public"))
    (refresher.state / "grants/broken.json").write_bytes(b"{")
    process = daemon()
    wait_until(lambda: published(refresher) >= 3, "the other grant is rotated")
    log = stopped(refresher, process)
    assert log.count("broken: invalid_grant_file") == 1
    assert (refresher.state / "grants/broken.json").read_bytes() == b"{"


def test_a_grants_directory_that_others_can_read_stops_rotations_until_it_is_repaired(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, refresh tokens would be written where others can read them."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    grants = refresher.state / "grants"
    process = daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    grants.chmod(0o755)
    demand = refresher.state / "demands/linear.1"
    demand.touch()
    heard(process, "others can read")
    assert published(refresher) == 1
    grants.chmod(0o700)
    wait_until(lambda: published(refresher) == 2, "rotations continue")
