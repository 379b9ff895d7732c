"""The daemon against real servers: on time, attentive, and no trouble to others."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from refresher.grants import policy
from refresher.grants.record import Grant
from refresher.storage import lock
from shim import FileTokenSource
from shim.httpx import BearerAuth
from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, stopped
from tests.support.oidc import OIDC
from tests.support.samples import grant as sample
from tests.support.token_server import TokenServer

Daemon = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def daemon(refresher: Command) -> Iterator[Daemon]:
    """Start daemons; at the end each is stopped, and must have come to a good end."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, **more: Any) -> subprocess.Popen[str]:
        running.append(refresher.start(*options, "run", **more))
        return running[-1]

    yield start
    for process in running:
        if process.returncode is None:
            process.terminate()
            done = refresher.finish(process)
            assert done.code == 0, done.stderr


# --- on time ------------------------------------------------------------------------------------------------------

# The machine's own lateness, for comparison: a process that does nothing but wake up at instants.
PEER = """
import sys, time
worst, at = 0.0, time.time()
print("ready", flush=True)
while time.time() < float(sys.argv[1]):
    at = max(at + 0.02, time.time())
    time.sleep(max(at - time.time(), 0))
    worst = max(worst, time.time() - at)
print(worst)
"""


def test_two_hundred_grants_rotate_within_a_second_of_their_time_though_one_server_hangs(
    refresher: Command, daemon: Daemon
) -> None:
    """If it failed, tokens would run out because there are many, or because somebody else's server is down."""
    release = threading.Event()
    ends = time.time() + 25.0
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(ends)], stdout=subprocess.PIPE, text=True)

    def life(client: str) -> float:
        return 4.0 + int(client) % 17

    with (
        TokenServer(life, hold=lambda: bool(release.wait(60))) as hanging,
        # Several, as in life: each is asked within its budget.
        TokenServer(life) as one,
        TokenServer(life) as two,
        TokenServer(life) as three,
        TokenServer(life) as four,
    ):
        good = (one, two, three, four)
        for number in range(200):
            server = hanging if number % 10 == 0 else good[number % 4]
            refresher.bring(f"g{number}", server.grant(str(number)))
        process = daemon()
        told, _ = peer.communicate(timeout=60)
        asked = {client: list(times) for server in good for client, times in server.asked.items()}
        release.set()
        process.send_signal(signal.SIGTERM)
        assert refresher.finish(process).code == 0
    assert len(asked) == 180
    late = []
    for client, times in asked.items():
        assert len(times) >= 1 + int((ends - times[0] - 2) / (0.75 * life(client) + 1)), "a grant was left out"
        for count, (before, after) in enumerate(itertools.pairwise(times), start=1):
            issued = sample(
                name=f"g{client}",
                generation=count,
                issued_at=before,
                expires_at=before + life(client),
                last_rotation_at=before,
            )
            late.append(after - policy.due_at(issued))
    assert max(late) < 1.0 + float(told.split()[-1])
    # It was asked a little after the request began that the refresher counts from.
    assert min(late) > -1.0
    assert [server.reused for server in (*good, hanging)] == [0] * 5
    assert max(len(times) for times in hanging.asked.values()) == 1


# --- attentive ----------------------------------------------------------------------------------------------------


def test_one_line_at_the_start_says_what_is_watched_and_where(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a person could not see that a daemon looks into another directory than his agents."""
    refresher.bring("linear", sample_import())
    refresher.bring("gone", sample_import() | {"refresh_token": "another-refresh-token"})
    refresher("remove", "gone")
    process = daemon()
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "watching 1 grant in " in line, "a removed grant is counted"
    for directory in ("grants", "tokens", "demands"):
        assert str(refresher.state / directory) in line


def sample_import() -> dict[str, Any]:
    """Return a grant whose token is good for an hour, at a server that is not there."""
    return {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": "a-refresh-token-of-nobody",
        "server_url": "https://mcp.example/mcp",
        "access_token": "an-access-token-of-nobody",
        "expires_in": 3600,
    }


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
    said = heard(process, "linear: reauthorization_required")
    assert said, "what another process did was no news"
    refresher.import_grant("linear", server.mint("public"), "--replace")
    wait_until(lambda: published(refresher) == 3, "the reauthorized grant is rotated")
    assert refresher.token("linear").state == "active"
    refresher("remove", "linear")
    assert refresher.token("linear").state == "removed"
    refresher.import_grant("linear", server.mint("basic"))
    wait_until(lambda: published(refresher) == 5, "the grant that came back is rotated")
    assert server.log()["reused"] == 0


def test_demands_are_honoured_and_an_old_one_is_published_again(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, an agent whose token was revoked would wait for the schedule."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "the demand is honoured")
    wait_until(lambda: not list((refresher.state / "demands").iterdir()), "the demand is settled")
    before = (refresher.state / "tokens/linear.json").stat().st_ino
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: (refresher.state / "tokens/linear.json").stat().st_ino != before, "it is published again")
    assert published(refresher) == 2
    assert len(server.requests()) == 2


def test_a_token_file_that_somebody_deletes_or_spoils_is_published_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a tidied directory would leave agents without a token until the next rotation."""
    refresher.bring("linear", sample_import())
    daemon()
    path = refresher.state / "tokens/linear.json"
    whole = path.read_bytes()
    path.unlink()
    wait_until(path.exists, "the token is published again")
    path.with_name("other").write_bytes(b"{}")
    path.with_name("other").rename(path)
    wait_until(lambda: path.read_bytes() == whole, "the token is published again")


def test_a_broken_grant_file_is_told_once_and_the_others_live(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, one damaged file would end the rotation of all grants, or fill the log."""
    server = own_oidc(accessTokenTtl=4)
    refresher.bring("broken", sample_import())
    refresher.import_grant("linear", server.mint("public"))
    (refresher.state / "grants/broken.json").write_bytes(b"{")
    process = daemon()
    wait_until(lambda: published(refresher) >= 3, "the other grant is rotated")
    said = stopped(refresher, process)
    assert said.count("broken: invalid_grant_file") == 1
    assert (refresher.state / "grants/broken.json").read_bytes() == b"{"


def test_sighup_rereads_the_configuration_and_a_bad_one_keeps_the_old(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a typing mistake in a file would stop all rotations."""
    server = own_oidc()
    other = refresher.home / "other/tokens"
    refresher.import_grant("linear", server.mint("public"))
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    process = daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    config.write_text('tokens_dri = "other"\n')
    process.send_signal(signal.SIGHUP)
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "it goes on with the old configuration")
    config.write_text(f'tokens_dir = "{other}"\n')
    process.send_signal(signal.SIGHUP)
    wait_until((other / "linear.json").exists, "the token is published where the configuration now says")
    said = stopped(refresher, process)
    assert said.count("the configuration is kept as it was") == 1
    assert "tokens_dri" in said
    assert said.count("the configuration was read again") == 1


def test_a_grants_directory_that_others_can_read_stops_rotations_until_it_is_mended(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, refresh tokens would be written where others can read them, or a mended directory stay unnoticed."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    grants = refresher.state / "grants"
    process = daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    grants.chmod(0o755)
    demand = refresher.state / "demands/linear.1"
    demand.touch()
    heard(process, "others can look into")
    assert published(refresher) == 1
    grants.chmod(0o700)
    wait_until(lambda: published(refresher) == 2, "it goes on")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('tokens_dir = "dangling"', "dangling"),
        ('tokens_dir = "a-file"', "not a directory"),
        ('ca_file = "a\\u0000b"', "no path"),
        ('tokens_dir = "~a\\u0000b/x"', "tokens_dir"),
        ("tokens_group = " + '"' + "9" * 5000 + '"', "tokens_group"),
        ('log_format = "json"\nca_file = "nowhere.pem"', "nowhere.pem"),
    ],
)
def test_no_configuration_however_wrong_ends_a_daemon(
    refresher: Command, daemon: Daemon, config: str, words: str
) -> None:
    """If it failed, a mistake in a file would end the rotation of every grant at the next reload."""
    place = refresher.home / ".config/refresher"
    place.mkdir(parents=True)
    (place / "dangling").symlink_to("nowhere")
    (place / "a-file").touch()
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")
    (place / "config.toml").write_text(config)
    process.send_signal(signal.SIGHUP)
    assert words in heard(process, "the configuration is kept as it was")[-1]
    (refresher.state / "tokens/linear.json").unlink()
    wait_until((refresher.state / "tokens/linear.json").exists, "it goes on with the old configuration")


def test_reloading_costs_nothing_that_stays(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a daemon that is reloaded each night would run out of threads within a year."""
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")

    def held() -> tuple[int, int]:
        proc = Path(f"/proc/{process.pid}")
        return len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir()))

    counted = set()
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        heard(process, "the configuration was read again")
        counted.add(held())
    assert len({threads for threads, _ in counted}) == 1
    assert max(files for _, files in counted) < 20


def test_what_waits_its_turn_follows_a_new_configuration(refresher: Command, daemon: Daemon) -> None:
    """If it failed, grants that were moved would still be rotated where they are not any more, and lose a token."""
    release = threading.Event()
    with TokenServer(lambda _: 3600, hold=lambda: release.wait(60)) as server:
        for number in range(20):
            refresher.bring(f"g{number}", server.grant(str(number)))
        config = refresher.home / ".config/refresher/config.toml"
        config.parent.mkdir(parents=True)
        process = daemon()
        wait_until(lambda: len(server.asked) == 8, "all places of the server are taken")
        config.write_text(f'state_dir = "{refresher.home / "elsewhere"}"\n')
        process.send_signal(signal.SIGHUP)
        heard(process, "the configuration was read again")
        release.set()
        assert stopped(refresher, process)
        assert len(server.asked) == 8


def test_one_503_beside_a_dead_token_costs_an_agent_no_call(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, agents would give up before a refresher that waits fifteen seconds to ask once more."""
    server = own_oidc()
    # Backoffs come from the name: of this one the first is among the longest.
    names = (f"n{number}" for number in itertools.count())
    name = next(each for each in names if policy.backoff(sample(name=each, generation=1), 1) > 14.8)
    with API(lambda token, _: token is not None and token != first) as api:
        refresher.bring(name, server.mint() | {"server_url": api.origin})
        daemon()
        wait_until(lambda: published(refresher, name) == 1, "the first token is there")
        first = refresher.token(name).access_token
        server.script(status=503)
        directories = {"tokens_dir": refresher.state / "tokens", "demands_dir": refresher.state / "demands"}
        with httpx.Client(auth=BearerAuth(FileTokenSource(name, **directories)), timeout=60) as client:
            assert client.get(api.origin).status_code == 200
    assert published(refresher, name) == 2


def test_demands_and_tokens_may_be_links(refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]) -> None:
    """If it failed, demands in a linked directory would wait for half a minute."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    real = refresher.home / "elsewhere"
    (refresher.state / "demands").rename(real)
    (refresher.state / "demands").symlink_to(real)
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    (real / "linear.1").touch()
    wait_until(lambda: published(refresher) == 2, "the demand is honoured", 10.0)


def test_a_demands_directory_that_vanishes_is_made_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, no agent could demand anything until the next scheduled rotation."""
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")
    (refresher.state / "demands").rmdir()
    wait_until((refresher.state / "demands").is_dir, "it is there again", 10.0)


def test_a_storm_of_old_demands_delays_neither_a_real_one_nor_the_schedule(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, one agent with a bug would let the tokens of all others expire."""
    server = own_oidc(accessTokenTtl=4)
    refresher.import_grant("linear", server.mint("public"))
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    over = threading.Event()

    def storm() -> None:
        while not over.wait(0.02):
            (refresher.state / "demands/linear.0").touch()

    threading.Thread(target=storm, daemon=True).start()
    try:
        wait_until(lambda: published(refresher) >= 5, "the schedule is kept")
        rotated = [request["at"] / 1000 for request in server.requests()]
        assert all(later < before + 4 for before, later in itertools.pairwise(rotated)), (
            "a token had ended before the next"
        )
    finally:
        over.set()


# --- no trouble to others -----------------------------------------------------------------------------------------


def test_daemons_and_forced_runs_together_never_present_a_refresh_token_twice(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a second daemon, started by mistake, would destroy every login."""
    server = own_oidc(accessTokenTtl=4)
    for name in ("linear", "notion", "slack"):
        refresher.import_grant(name, server.mint("basic"))
    for _ in range(3):
        daemon()
    for _ in range(5):
        running = [refresher.start("run-once", "--force") for _ in range(3)]
        assert [refresher.finish(process).code for process in running] == [0, 0, 0]
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} <= {200, None}
    for name in ("linear", "notion", "slack"):
        token = refresher.token(name)
        assert server.introspect(token.access_token)["active"]


def test_grants_that_others_hold_keep_no_place_from_the_rest(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a stopped process that holds some locks would let the tokens of all others expire."""
    with TokenServer(lambda _: 4) as server, ExitStack() as locks:
        for number in range(12):
            refresher.bring(f"g{number}", server.grant(str(number)))
        for number in range(10):
            path = refresher.state / f"grants/g{number}.lock"
            locks.enter_context(lock.held(path, stopping=lambda: False))
        process = daemon()
        wait_until(lambda: len(server.asked["10"]) >= 5, "the others rotate", 60.0)
        rotated = server.asked["10"]
        assert all(later < before + 4 for before, later in itertools.pairwise(rotated)), (
            "a token had ended before the next"
        )
        assert "0" not in server.asked
        locks.close()
        wait_until(lambda: all(str(number) in server.asked for number in range(10)), "those too, when they are free")
        assert "fault" not in stopped(refresher, process)
        assert server.reused == 0


def test_what_does_not_help_is_not_done_all_the_time(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a full disk would be met by a storm of attempts, and a log of nothing else."""
    refresher.bring("linear", sample_import())
    # Nothing can be published over a directory.
    path = refresher.state / "tokens/linear.json"
    path.unlink()
    path.mkdir()
    process = daemon()
    heard(process, "storage_failed")
    path.rmdir()
    wait_until(path.is_file, "the token is published")
    assert isinstance(refresher.record("linear"), Grant)
    assert "storage_failed" not in stopped(refresher, process)
