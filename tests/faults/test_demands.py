"""Malicious or broken agents: unusual files in ``demands/``, too many of them, and a damaged directory."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from shim._token import render
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, published, running, stopped
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts, no_strace
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

HUGE = 999_999_999_999_999_999
MANY = 20_000
FOREIGN = 150_000

# Names that are similar to a demand for generation 1 of the grant linear.
INVALID_NAMES = [
    b"linear.01",
    b"linear.+1",
    b"linear.-1",
    b"linear.1 ",
    b" linear.1",
    b"linear.1\n",
    b"linear\n.1",
    b"linear.1.",
    b"linear..1",
    b"linear.1_0",
    b"linear.1e0",
    b"linear.0x1",
    b"linear.99999999999999999999",
    b"linear." + b"9" * 248,
    b"l" * 253 + b".1",
    "linear.\N{FULLWIDTH DIGIT ONE}".encode(),
    "linear.\N{ARABIC-INDIC DIGIT ONE}".encode(),
    "lin\N{LATIN SMALL LETTER DOTLESS I}ear.1".encode(),
    b"linear\xff.1",
    b"linear.\xff\xfe1",
    b"LINEAR.1",
    b".1",
    b"..1",
    b"linear",
    b"\x1b[2J.1",
    b"grants.1",
]


def _a_link_to_the_record(path: Path) -> None:
    path.symlink_to(f"../grants/{path.stem}.json")


def _a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _a_directory(path: Path) -> None:
    path.mkdir()


def _a_full_directory(path: Path) -> None:
    (path / "linear.1").mkdir(parents=True)


def _a_fifo(path: Path) -> None:
    os.mkfifo(path)


def _a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as short:
        listener.bind(f"{short}/s")
        Path(f"{short}/s").rename(path)


def wait_for_listing(refresher: Command, demand: str) -> None:
    """Add an outdated demand, and wait until the daemon removes it: by then it has listed all demands."""
    path = refresher.state / "demands" / demand
    path.touch()
    wait_until(lambda: not path.exists(), "the daemon lists the demands")


def demand_names(refresher: Command) -> set[bytes]:
    """Return the names in ``demands/``."""
    return {os.fsencode(path.name) for path in (refresher.state / "demands").iterdir()}


@contextmanager
def rotated_once(refresher: Command, server: TokenServer) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon with one grant of generation 1."""
    refresher.import_grant("linear", server.grant("client"))
    with running(refresher) as daemon:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        yield daemon


def test_invalid_names_rotate_nothing_and_are_not_removed(refresher: Command) -> None:
    """If it failed, an agent could cause any number of rotations, or the removal of files that are no demands."""
    with TokenServer(lambda _: 3600) as server, rotated_once(refresher, server) as daemon:
        for name in INVALID_NAMES:
            with open(os.path.join(os.fsencode(refresher.state / "demands"), name), "wb"):  # noqa: PTH118, PTH123
                pass
        wait_for_listing(refresher, "linear.0")
        assert demand_names(refresher) == set(INVALID_NAMES)
        assert (refresher.token("linear").generation, len(server.asked["client"])) == (1, 1)
        assert refresher("run-once", "--json").outcome == "not_due"
        log = stopped(refresher, daemon)
        assert len(log.splitlines()) == 3, log
        assert "\x1b" not in log


@pytest.mark.parametrize("command", ["run-once", "run"])
def test_an_entry_of_any_kind_is_a_demand_and_no_other_file_changes(refresher: Command, command: str) -> None:
    """If it failed, a directory or link of one agent would block the demands of others, or change other files (I6)."""
    kinds = (_a_link_to_the_record, _a_link_to_nowhere, _a_directory, _a_full_directory, _a_fifo, _a_socket)
    demands = refresher.state / "demands"
    with TokenServer(lambda _: 3600) as server:
        for number in range(len(kinds)):
            refresher.bring(f"g{number}", server.grant(str(number)))
        assert refresher("run-once").code == 0
        for (number, make), generation in itertools.product(enumerate(kinds), (0, 1)):
            make(demands / f"g{number}.{generation}")
        if command == "run-once":
            # At least one second after the last rotation.
            wait_until(lambda: _has_rotated_all(refresher, len(kinds), "run-once"), "every grant rotates")
        else:
            with running(refresher) as daemon:
                wait_until(lambda: _has_rotated_all(refresher, len(kinds)), "every grant rotates")
                wait_until(lambda: _ignored(refresher) == demand_names(refresher), "the demands are removed")
                assert "cannot remove the demand" not in stopped(refresher, daemon)
        # The directories with something in them have another name now.
        assert _ignored(refresher) == demand_names(refresher)
        assert len(_ignored(refresher)) == 2
        assert {client: len(times) for client, times in server.asked.items()} == {
            str(number): 2 for number in range(len(kinds))
        }
        assert {result["outcome"] for result in refresher("run-once", "--json").results.values()} <= {"not_due"}
        assert server.reused == 0


def _ignored(refresher: Command) -> set[bytes]:
    return {name for name in demand_names(refresher) if re.fullmatch(rb"ignored-[0-9a-f]{32}", name)}


def _has_rotated_all(refresher: Command, count: int, *command: str) -> bool:
    if command:
        refresher(*command)
    return all(published(refresher, f"g{number}") == 2 for number in range(count))


def test_no_file_in_demands_is_opened(refresher: Command) -> None:
    """If it failed, an agent could block the refresher with a FIFO or a device while it holds the lock of a grant."""
    need(no_strace())
    refresher.import_grant("linear", {"access_token": "an-access-token", "expires_in": 3600, **_unreachable()})
    demands = refresher.state / "demands"
    for name in ("linear.5", "linear.7", "unknown.1", "linear.x"):
        (demands / name).touch()
    _a_fifo(demands / "linear.3")
    _a_directory(demands / "linear.2")
    trace = refresher.home / "trace"
    prefix = ("strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=%file")
    assert refresher.finish(refresher.start("run-once", prefix=prefix)).code == 0
    calls = [line for line in trace.read_text().splitlines() if re.search('demands(/|>, "[^"])', line)]
    assert {line.split(None, 1)[1].partition("(")[0] for line in calls} == {"newfstatat", "unlinkat"}, calls
    assert demand_names(refresher) == {b"unknown.1", b"linear.x"}


def _unreachable() -> dict[str, str]:
    return {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": "an-unused-refresh-token",
        "server_url": "https://mcp.example/mcp",
    }


def test_a_demand_for_a_generation_that_does_not_exist_neither_rotates_nor_ends_a_doubt(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, one invalid file would rotate a grant again and again, and end the protection of a doubt (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    assert refresher("run-once").code == 0
    demand = refresher.state / f"demands/linear.{HUGE}"
    demand.touch()
    assert refresher("run-once", "--json").outcome == "not_due"
    assert not demand.exists()
    server.script(drop=True, process=True)
    assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
    demand.touch()
    assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
    assert len(server.requests()) == 2, "the refresh token in doubt was sent although the access token is live"
    assert server.introspect(refresher.token("linear").access_token)["active"]


def test_a_demand_that_was_planted_before_its_token_never_ends_a_doubt(refresher: Command, own_oidc: Start) -> None:
    """If it failed, an agent could have a spent refresh token sent again, and the server would revoke the login (I1)."""
    server, demands = own_oidc(), refresher.state / "demands"
    demands.mkdir(mode=0o700, parents=True)
    for generation in range(4):
        _a_full_directory(demands / f"linear.{generation}")
    refresher.import_grant("linear", server.mint())
    assert refresher("run-once").code == 0
    server.script(drop=True, process=True)
    assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
    for command in (("run-once",), ("run-once", "--force")):
        assert refresher(*command, "--json").outcome == "in_doubt"
    assert len(server.requests()) == 2, "the refresh token in doubt was sent although the access token is live"
    token = refresher.token("linear")
    assert server.introspect(token.access_token)["active"]
    # A demand that is made afterwards ends the doubt.
    _a_full_directory(demands / f"linear.{token.generation}")
    refresher("run-once", "--force")
    assert len(server.requests()) == 3


def test_a_demand_for_the_published_token_rotates_after_a_restored_backup(refresher: Command, own_oidc: Start) -> None:
    """If it failed, agents could not demand a new token after a backup was restored."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    assert refresher("run-once").code == 0
    path = refresher.state / "tokens/linear.json"
    path.write_bytes(render(refresher.token("linear")._replace(generation=2)))
    (refresher.state / "demands/linear.2").touch()
    wait_until(
        lambda: refresher("run-once", "--json").outcome == "rotated",
        "the grant rotates, one second after the last rotation",
    )
    assert refresher.token("linear").generation == 3


def test_tens_of_thousands_of_demands_delay_neither_a_valid_one_nor_the_schedule(refresher: Command) -> None:
    """If it failed, one broken agent would let the tokens of all grants expire."""
    over = threading.Event()
    demands = refresher.state / "demands"

    def flood() -> None:
        for number in itertools.count():
            (demands / f"unknown-{number % 1000}.{number}").touch()
            (demands / f"linear.{HUGE - number % 1000}").touch()
            if over.wait(0.001):
                return

    with TokenServer(lambda client: 24 if client == "scheduled" else 3600) as server:
        refresher.import_grant("notion", server.grant("scheduled"))
        with rotated_once(refresher, server) as daemon:
            for number in range(MANY):
                (demands / f"unknown.{number}").touch()
                (demands / f"linear.{number + 2}").touch()
            flooding = threading.Thread(target=flood)
            flooding.start()
            try:
                before = published(refresher, "notion")
                wait_until(lambda: published(refresher, "notion") > before, "the grant that is due rotates")
                assert published(refresher) == 1
                (demands / "linear.1").touch()
                wait_until(lambda: published(refresher) == 2, "the valid demand rotates")
                assert len(server.asked["client"]) == 2
            finally:
                over.set()
                flooding.join()
            # Rotation is due after 18 s.
            times = server.asked["scheduled"]
            assert all(later < earlier + 24 for earlier, later in itertools.pairwise(times)), "a token has expired"
            wait_until(
                lambda: not any(name.startswith(b"linear.") for name in demand_names(refresher)), "all are removed"
            )
            log = stopped(refresher, daemon)
        assert len(log.splitlines()) < 50, "the log has a line for each demand"
        assert server.reused == 0


def test_memory_does_not_depend_on_the_number_of_demands_for_other_names(refresher: Command) -> None:
    """If it failed, an agent could fill the memory of the refresher, which is then killed during an exchange."""
    need(no_mounts())
    demands = refresher.state / "demands"
    with (
        mounted(demands, "size=512m,nr_inodes=0"),
        TokenServer(lambda _: 3600) as server,
        rotated_once(refresher, server) as daemon,
    ):
        before = _most_memory(daemon)
        daemon.send_signal(signal.SIGSTOP)
        (demands / "linear.1").touch()  # a tmpfs lists the first one last
        for number in range(FOREIGN):
            (demands / f"unknown-{number}.0").touch()
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: published(refresher) == 2, "the demand rotates")
        wait_until(lambda: not (demands / "linear.1").exists(), "the demand is removed")
        assert _most_memory(daemon) - before < 12 * 1024
        assert len(demand_names(refresher)) == FOREIGN, "a demand of another refresher was removed"
        log = stopped(refresher, daemon)
        assert log.count("too many entries in") == 1, log
        assert (len(server.asked["client"]), server.reused) == (2, 0)


def _most_memory(process: subprocess.Popen[str]) -> int:
    """Return the most KiB that the process has used."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(line)


@pytest.mark.parametrize("demands_are", ["repeated", "full directories"])
def test_repeated_demands_rotate_at_most_four_times_in_the_lifetime_of_a_token(
    refresher: Command, demands_are: str
) -> None:
    """If it failed, an agent, or a server that always answers 401, could use up a grant."""
    life = 8.0
    issued: dict[int, float] = {}
    over = threading.Event()
    demands = refresher.state / "demands"

    def demand() -> None:
        while not over.wait(0.01):
            path = demands / f"linear.{published(refresher)}"
            if demands_are == "repeated":
                path.touch()
            elif not path.exists():
                _a_full_directory(path)

    def five_generations() -> bool:
        token = refresher.token("linear")
        issued[token.generation] = token.issued_at or 0.0
        return token.generation >= 5

    with TokenServer(lambda _: life) as server, rotated_once(refresher, server) as daemon:
        demanding = threading.Thread(target=demand)
        demanding.start()
        try:
            wait_until(five_generations, "four demands rotate")
        finally:
            over.set()
            demanding.join()
        # The first demand rotates at once.
        seen = sorted((generation, at) for generation, at in issued.items() if generation > 1)
        for (before, earlier), (after, later) in itertools.pairwise(seen):
            assert later - earlier > (after - before) * life / 4 - 0.1, issued
        assert "cannot remove the demand" not in stopped(refresher, daemon)
        assert server.reused == 0


def _rotates_on(refresher: Command, before: int) -> bool:
    return published(refresher) >= before + 2


def _a_file(demands: Path) -> None:
    demands.touch()


def _a_link_of_another_user_to_the_grants(demands: Path) -> None:
    demands.symlink_to("grants")
    os.chown(demands, 12345, -1, follow_symlinks=False)


def _a_dangling_link(demands: Path) -> None:
    demands.symlink_to("nowhere")


def _a_link_to_itself(demands: Path) -> None:
    demands.symlink_to("demands")


def test_tokens_rotate_on_schedule_without_a_usable_demands_directory(refresher: Command) -> None:
    """If it failed, a user who can write to demands/ could let every token expire, or have grants removed as demands."""
    need(no_mounts())  # a link of another user needs root
    demands = refresher.state / "demands"
    kept = refresher.state / "grants/linear.answer.17"
    with TokenServer(lambda _: 2) as server, rotated_once(refresher, server) as daemon:
        kept.touch()
        lines = []
        for put in (_a_file, _a_dangling_link, _a_link_to_itself, _a_link_of_another_user_to_the_grants):
            daemon.send_signal(signal.SIGSTOP)  # else it makes the directory again
            shutil.rmtree(demands)
            put(demands)
            daemon.send_signal(signal.SIGCONT)
            wait_until(partial(_rotates_on, refresher, published(refresher)), "the grant rotates on schedule")
            done = refresher("run-once", "--force", "--json")
            # The daemon may rotate first.
            assert (done.code, done.outcome in ("rotated", "adopted")) == (0, True), done.stdout + done.stderr
            assert "cannot accept demands from agents" in done.stderr
            lines += heard(daemon, "cannot accept demands from agents")
            demands.unlink()
            wait_until(demands.is_dir, "the daemon makes the directory again")
        log = "".join(lines) + stopped(refresher, daemon)
        # One message for each problem, heard above; once more if the daemon reads the directory while it is being replaced.
        warnings = [line for line in log.splitlines() if "cannot accept demands from agents" in line]
        for problem in ("is not a directory", "No such file", "Too many levels", "is a link of user 12345"):
            assert any(problem in line for line in warnings), log
        assert len(warnings) <= 8, log
        assert "storage_failed" not in log
        assert kept.exists()
        assert server.reused == 0


def test_a_demands_directory_that_is_removed_again_and_again_stops_no_rotation(refresher: Command) -> None:
    """If it failed, a cleanup script could stop rotations, or leave the files of an attempt."""
    over = threading.Event()
    demands = refresher.state / "demands"

    def replace_directory() -> None:
        while not over.wait(0.01):
            shutil.rmtree(demands, ignore_errors=True)
            demands.mkdir(exist_ok=True)
            (demands / "linear.0").touch()

    with TokenServer(lambda _: 2) as server, rotated_once(refresher, server) as daemon:
        replacing = threading.Thread(target=replace_directory)
        replacing.start()
        try:
            before = published(refresher)
            wait_until(lambda: published(refresher) >= before + 4, "the grant rotates on schedule")
        finally:
            over.set()
            replacing.join()
        log = stopped(refresher, daemon)
        assert "fault" not in log
        assert "storage_failed" not in log
        assert refresher.leftovers() == []
        assert server.reused == 0


def test_a_demand_that_cannot_be_removed_is_reported_once_and_rotates_once(refresher: Command) -> None:
    """If it failed, a read-only demands directory would cause endless rotations or publications."""
    need(no_mounts())
    demands, token = refresher.state / "demands", refresher.state / "tokens/linear.json"
    with TokenServer(lambda _: 3600) as server, rotated_once(refresher, server) as daemon, mounted(demands, "size=1m"):
        (demands / "linear.1").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(demands)], check=True)
        wait_until(lambda: published(refresher) == 2, "the demand rotates")
        written = {token.stat().st_mtime_ns}
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            written.add(token.stat().st_mtime_ns)
            time.sleep(0.01)  # between two reads
        assert len(written) < 6
        assert len(server.asked["client"]) == 2
        assert stopped(refresher, daemon).count("cannot remove the demand") == 1
