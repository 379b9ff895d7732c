"""The daemon against real servers: it rotates on time, notices changes, and works beside others."""

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
    """Start daemons; at the end each is stopped and must exit with 0."""
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

# How late the machine itself is, for comparison: a process that only wakes up at given times.
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


def test_two_hundred_grants_rotate_within_a_second_of_their_time_while_one_server_hangs(
    refresher: Command, daemon: Daemon
) -> None:
    """If it failed, tokens would expire because there are many grants, or because another server is down."""
    release = threading.Event()
    ends = time.time() + 25.0
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(ends)], stdout=subprocess.PIPE, text=True)

    def life(client: str) -> float:
        return 4.0 + int(client) % 17

    with (
        TokenServer(life, hold=lambda: bool(release.wait(60))) as hanging,
        # Several servers, because each has a rate limit.
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
        lateness, _ = peer.communicate(timeout=60)
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
    assert max(late) < 1.0 + float(lateness.split()[-1])
    # The server notes the time of a request a little later than refresher.
    assert min(late) > -1.0
    assert [server.reused for server in (*good, hanging)] == [0] * 5
    assert max(len(times) for times in hanging.asked.values()) == 1


# --- notices changes ----------------------------------------------------------------------------------------------------


def test_the_first_line_names_the_watched_directories(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a person could not see that daemon and agents use different directories."""
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
    """Return a grant with a token that is valid for an hour, at a server that does not exist."""
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
    wait_until(lambda: published(refresher) == 2, "the demand is honoured")
    wait_until(lambda: not list((refresher.state / "demands").iterdir()), "the demand is removed")
    before = (refresher.state / "tokens/linear.json").stat().st_ino
    (refresher.state / "demands/linear.1").touch()
    wait_until(lambda: (refresher.state / "tokens/linear.json").stat().st_ino != before, "it is published again")
    assert published(refresher) == 2
    assert len(server.requests()) == 2


def test_a_deleted_or_damaged_token_file_is_published_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, agents would have no token until the next rotation."""
    refresher.bring("linear", sample_import())
    daemon()
    path = refresher.state / "tokens/linear.json"
    whole = path.read_bytes()
    path.unlink()
    wait_until(path.exists, "the token is published again")
    path.with_name("other").write_bytes(b"{}")
    path.with_name("other").rename(path)
    wait_until(lambda: path.read_bytes() == whole, "the token is published again")


def test_a_damaged_grant_file_is_logged_once_and_other_grants_rotate(
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


def test_sighup_reloads_the_configuration_and_an_invalid_one_changes_nothing(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a typo in the configuration would stop all rotations."""
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
    assert said.count("cannot reload the configuration") == 1
    assert "tokens_dri" in said
    assert said.count("configuration reloaded") == 1


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
    wait_until(lambda: published(refresher) == 2, "it goes on")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('tokens_dir = "dangling"', "dangling"),
        ('tokens_dir = "a-file"', "not a directory"),
        ('ca_file = "a\\u0000b"', "not valid"),
        ('tokens_dir = "~a\\u0000b/x"', "tokens_dir"),
        ("tokens_group = " + '"' + "9" * 5000 + '"', "tokens_group"),
        ('log_format = "json"\nca_file = "nowhere.pem"', "nowhere.pem"),
    ],
)
def test_no_invalid_configuration_ends_a_daemon(refresher: Command, daemon: Daemon, config: str, words: str) -> None:
    """If it failed, a mistake in the configuration would end the daemon at the next reload."""
    place = refresher.home / ".config/refresher"
    place.mkdir(parents=True)
    (place / "dangling").symlink_to("nowhere")
    (place / "a-file").touch()
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")
    (place / "config.toml").write_text(config)
    process.send_signal(signal.SIGHUP)
    assert words in heard(process, "cannot reload the configuration")[-1]
    (refresher.state / "tokens/linear.json").unlink()
    wait_until((refresher.state / "tokens/linear.json").exists, "it goes on with the old configuration")


def test_a_reload_leaks_no_threads_or_files(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a daemon that is reloaded each night would run out of threads or files."""
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")

    def held() -> tuple[int, int]:
        proc = Path(f"/proc/{process.pid}")
        return len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir()))

    counts = set()
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        counts.add(held())
    assert len({threads for threads, _ in counts}) == 1
    assert max(files for _, files in counts) < 20


def test_waiting_jobs_follow_a_new_configuration(refresher: Command, daemon: Daemon) -> None:
    """If it failed, grants would be rotated in a directory from which they were moved, and tokens lost."""
    release = threading.Event()
    with TokenServer(lambda _: 3600, hold=lambda: release.wait(60)) as server:
        for number in range(20):
            refresher.bring(f"g{number}", server.grant(str(number)))
        config = refresher.home / ".config/refresher/config.toml"
        config.parent.mkdir(parents=True)
        process = daemon()
        wait_until(lambda: len(server.asked) == 8, "the limit of the server is reached")
        config.write_text(f'state_dir = "{refresher.home / "elsewhere"}"\n')
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        release.set()
        assert stopped(refresher, process)
        assert len(server.asked) == 8


def test_after_a_503_a_demanded_rotation_is_retried_within_seconds(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, an agent would give up while refresher waits fifteen seconds before the retry."""
    server = own_oidc()
    # The backoff depends on the name: the first one of this name is among the longest.
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
    wait_until(lambda: published(refresher) == 2, "the demand is honoured", 10.0)


def test_a_deleted_demands_directory_is_created_again(refresher: Command, daemon: Daemon) -> None:
    """If it failed, no agent could demand a rotation until the next scheduled one."""
    refresher.bring("linear", sample_import())
    process = daemon()
    heard(process, "watching 1 grant")
    (refresher.state / "demands").rmdir()
    wait_until((refresher.state / "demands").is_dir, "the directory exists again", 10.0)


def test_a_flood_of_outdated_demands_does_not_delay_the_schedule(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, one agent with a bug would let the tokens of all agents expire."""
    server = own_oidc(accessTokenTtl=4)
    refresher.import_grant("linear", server.mint("public"))
    daemon()
    wait_until(lambda: published(refresher) == 1, "the first token is there")
    over = threading.Event()

    def flood() -> None:
        while not over.wait(0.02):
            (refresher.state / "demands/linear.0").touch()

    threading.Thread(target=flood, daemon=True).start()
    try:
        wait_until(lambda: published(refresher) >= 5, "the schedule is kept")
        rotated = [request["at"] / 1000 for request in server.requests()]
        assert all(later < before + 4 for before, later in itertools.pairwise(rotated)), (
            "a token had ended before the next"
        )
    finally:
        over.set()


# --- beside others -----------------------------------------------------------------------------------------


def test_daemons_and_forced_runs_together_never_send_a_refresh_token_twice(
    refresher: Command, daemon: Daemon, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a second daemon that is started by mistake would destroy every login."""
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


def test_grants_locked_by_other_processes_do_not_delay_the_rest(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a suspended process that holds some locks would let other tokens expire."""
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
        wait_until(
            lambda: all(str(number) in server.asked for number in range(10)), "they rotate once their locks are free"
        )
        assert "internal error" not in stopped(refresher, process)
        assert server.reused == 0


def test_a_failed_publication_is_retried_with_pauses(refresher: Command, daemon: Daemon) -> None:
    """If it failed, a full disk would cause endless attempts, and fill the log."""
    refresher.bring("linear", sample_import())
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
