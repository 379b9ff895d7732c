"""Agents that mean harm, or have a bug: whatever they put into demands/, and whatever becomes of it."""

import itertools
import os
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
from tests.support.daemon import published, running, stopped
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts, no_strace
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

FAR = 999_999_999_999_999_999
CROWD = 20_000

# Names that look like a demand and are none; the grant is linear, its generation 1.
NO_DEMANDS = [
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


def heard(refresher: Command, demand: str) -> None:
    """Put a demand that is decided at once, and wait until it is: by then everything else was seen too."""
    path = refresher.state / "demands" / demand
    path.touch()
    wait_until(lambda: not path.exists(), "the daemon has listed its demands")


def lying_there(refresher: Command) -> set[bytes]:
    """Return what is in demands/."""
    return {os.fsencode(path.name) for path in (refresher.state / "demands").iterdir()}


@contextmanager
def rotated_once(refresher: Command, server: TokenServer) -> Iterator[subprocess.Popen[str]]:
    """A daemon with one grant of generation 1."""
    refresher.import_grant("linear", server.grant("client"))
    with running(refresher) as daemon:
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        yield daemon


def test_names_that_are_no_demands_are_inert_and_left_alone(refresher: Command) -> None:
    """If it failed, an agent could have any number of rotations, or files removed that are none of refresher's."""
    with TokenServer(lambda _: 3600) as server, rotated_once(refresher, server) as daemon:
        for name in NO_DEMANDS:
            with open(os.path.join(os.fsencode(refresher.state / "demands"), name), "wb"):  # noqa: PTH118, PTH123
                pass
        heard(refresher, "linear.0")
        assert lying_there(refresher) == set(NO_DEMANDS)
        assert (refresher.token("linear").generation, len(server.asked["client"])) == (1, 1)
        assert refresher("run-once", "--json").outcome == "not_due"
        said = stopped(refresher, daemon)
        assert len(said.splitlines()) == 3, said
        assert "\x1b" not in said


@pytest.mark.parametrize("command", ["run-once", "run"])
def test_whatever_bears_a_demands_name_is_the_demand_and_nothing_else_is_touched(
    refresher: Command, command: str
) -> None:
    """If it failed, one agent's directory or link would silence all others, or reach what is not its own (I6)."""
    kinds = (_a_link_to_the_record, _a_link_to_nowhere, _a_directory, _a_full_directory, _a_fifo, _a_socket)
    demands = refresher.state / "demands"
    with TokenServer(lambda _: 3600) as server:
        for number in range(len(kinds)):
            refresher.bring(f"g{number}", server.grant(str(number)))
        assert refresher("run-once").code == 0
        for (number, make), generation in itertools.product(enumerate(kinds), (0, 1)):
            make(demands / f"g{number}.{generation}")
        if command == "run-once":
            # A second after the last rotation.
            wait_until(lambda: _has_rotated_all(refresher, len(kinds), "run-once"), "all are honoured")
        else:
            with running(refresher) as daemon:
                wait_until(lambda: _has_rotated_all(refresher, len(kinds)), "all are honoured")
                wait_until(lambda: len(lying_there(refresher)) == 2, "all are settled")
                assert stopped(refresher, daemon).count("cannot remove the demand") == 1
        assert lying_there(refresher) == {b"g3.0", b"g3.1"}
        assert {client: len(times) for client, times in server.asked.items()} == {
            str(number): 2 for number in range(len(kinds))
        }
        # What cannot be removed is a demand of the past.
        assert {result["outcome"] for result in refresher("run-once", "--json").results.values()} <= {"not_due"}
        assert server.reused == 0


def _has_rotated_all(refresher: Command, count: int, *command: str) -> bool:
    if command:
        refresher(*command)
    return all(published(refresher, f"g{number}") == 2 for number in range(count))


def test_nothing_in_demands_is_ever_opened(refresher: Command) -> None:
    """If it failed, an agent could make the refresher wait in a FIFO, or read a device, with a grant's lock held."""
    need(no_strace())
    refresher.import_grant("linear", {"access_token": "an-access-token", "expires_in": 3600, **_nowhere()})
    demands = refresher.state / "demands"
    for name in ("linear.5", "linear.7", "stranger.1", "linear.x"):
        (demands / name).touch()
    _a_fifo(demands / "linear.3")
    _a_directory(demands / "linear.2")
    trace = refresher.home / "trace"
    prefix = ("strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=%file")
    assert refresher.finish(refresher.start("run-once", prefix=prefix)).code == 0
    calls = [line for line in trace.read_text().splitlines() if "demands/" in line]
    assert {line.split(None, 1)[1].partition("(")[0] for line in calls} == {"unlink", "rmdir"}, calls
    assert lying_there(refresher) == {b"stranger.1", b"linear.x"}


def _nowhere() -> dict[str, str]:
    return {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": "a-refresh-token-of-nobody",
        "server_url": "https://mcp.example/mcp",
    }


def test_a_demand_of_a_generation_that_never_was_neither_rotates_nor_ends_a_doubt(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, one stray file would have a grant rotated for ever, and its doubt unprotected (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    assert refresher("run-once").code == 0
    far = refresher.state / f"demands/linear.{FAR}"
    far.touch()
    assert refresher("run-once", "--json").outcome == "not_due"
    assert not far.exists()
    server.script(drop=True, process=True)
    assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
    far.touch()
    assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
    assert len(server.requests()) == 2, "the refresh token in doubt was sent while its access token lived"
    assert server.introspect(refresher.token("linear").access_token)["active"]


def test_a_demand_of_the_token_that_readers_have_counts_beside_a_restored_backup(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, agents whose token is refused after a backup was restored could not ask for another one."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint())
    assert refresher("run-once").code == 0
    path = refresher.state / "tokens/linear.json"
    path.write_bytes(render(refresher.token("linear")._replace(generation=3)))
    (refresher.state / "demands/linear.3").touch()
    wait_until(lambda: refresher("run-once", "--json").outcome == "rotated", "a second after the last it is honoured")
    assert refresher.token("linear").generation == 4


def test_tens_of_thousands_of_demands_hold_up_neither_a_real_one_nor_the_schedule(refresher: Command) -> None:
    """If it failed, one agent with a bug would let the tokens of all others expire."""
    over = threading.Event()
    demands = refresher.state / "demands"

    def flood() -> None:
        for number in itertools.count():
            (demands / f"stranger-{number % 1000}.{number}").touch()
            (demands / f"linear.{FAR - number % 1000}").touch()
            if over.wait(0.001):
                return

    with TokenServer(lambda client: 6 if client == "quick" else 3600) as server:
        refresher.import_grant("notion", server.grant("quick"))
        with rotated_once(refresher, server) as daemon:
            for number in range(CROWD):
                (demands / f"stranger.{number}").touch()
                (demands / f"linear.{number + 2}").touch()
            flooding = threading.Thread(target=flood)
            flooding.start()
            try:
                before = published(refresher, "notion")
                wait_until(lambda: published(refresher, "notion") > before + 1, "the schedule is kept")
                assert published(refresher) == 1
                (demands / "linear.1").touch()
                wait_until(lambda: published(refresher) == 2, "a real demand is honoured")
                assert len(server.asked["client"]) == 2
            finally:
                over.set()
                flooding.join()
            times = server.asked["quick"]
            assert all(later < earlier + 6 for earlier, later in itertools.pairwise(times)), "a token had ended"
            wait_until(lambda: not any(name.startswith(b"linear.") for name in lying_there(refresher)), "settled")
            said = stopped(refresher, daemon)
        assert len(said.splitlines()) < 50, "the log is flooded too"
        assert server.reused == 0


@pytest.mark.parametrize("how", ["again and again", "for good"])
def test_whoever_demands_each_new_token_gets_it_no_sooner_than_a_quarter_of_its_life(
    refresher: Command, how: str
) -> None:
    """If it failed, an agent, or a server that answers 401 to everything, could burn a grant."""
    life = 8.0
    over = threading.Event()
    demands = refresher.state / "demands"

    def demand() -> None:
        while not over.wait(0.01):
            (demands / f"linear.{published(refresher)}").touch()

    with TokenServer(lambda _: life) as server, rotated_once(refresher, server) as daemon:
        demanding = threading.Thread(target=demand)
        if how == "for good":
            for generation in range(1, 50):
                _a_full_directory(demands / f"linear.{generation}")
        else:
            demanding.start()
        try:
            wait_until(lambda: published(refresher) >= 5, "it was demanded four times")
        finally:
            over.set()
            if demanding.ident is not None:
                demanding.join()
        times = server.asked["client"]
        # The first demand is honoured at once; what the server notes is a little later than what counts.
        assert all(later > earlier + life / 4 - 0.5 for earlier, later in itertools.pairwise(times[1:]))
        assert stopped(refresher, daemon).count("cannot remove the demand") == (how == "for good")
        assert server.reused == 0


def _rotates_on(refresher: Command, before: int) -> bool:
    return published(refresher) >= before + 2


def _a_file(demands: Path) -> None:
    demands.touch()


def _a_link_to_the_grants(demands: Path) -> None:
    demands.symlink_to("grants")


def _a_dangling_link(demands: Path) -> None:
    demands.symlink_to("nowhere")


def _a_link_to_itself(demands: Path) -> None:
    demands.symlink_to("demands")


def test_whatever_stands_where_demands_should_be_tokens_rotate_on_schedule(refresher: Command) -> None:
    """If it failed, a user who can write to demands/ could let every token expire, or have grants removed as demands."""
    demands = refresher.state / "demands"
    kept = refresher.state / "grants/linear.answer.17"
    with TokenServer(lambda _: 2) as server, rotated_once(refresher, server) as daemon:
        kept.touch()
        for put in (_a_file, _a_dangling_link, _a_link_to_itself, _a_link_to_the_grants):
            daemon.send_signal(signal.SIGSTOP)  # it would make the directory again
            shutil.rmtree(demands)
            put(demands)
            daemon.send_signal(signal.SIGCONT)
            wait_until(partial(_rotates_on, refresher, published(refresher)), "the schedule is kept")
            done = refresher("run-once", "--force", "--json")
            # The daemon may have been a moment earlier.
            assert (done.code, done.outcome in ("rotated", "adopted")) == (0, True), done.stdout + done.stderr
            assert ("cannot accept demands from agents" in done.stderr) is (put is not _a_link_to_the_grants)
            demands.unlink()
            wait_until(demands.is_dir, "it is there again")
        said = stopped(refresher, daemon)
        # Each in words of its own; once more where the directory was looked at while it was being spoilt.
        troubles = [line for line in said.splitlines() if "cannot accept demands from agents" in line]
        assert len(set(troubles)) == 3, said
        assert len(troubles) <= 6, said
        assert "storage_failed" not in said
        assert kept.exists()
        assert server.reused == 0


def test_a_demands_directory_that_comes_and_goes_during_rotations_costs_nothing(refresher: Command) -> None:
    """If it failed, a tidying script could stop rotations, or leave an attempt behind."""
    over = threading.Event()
    demands = refresher.state / "demands"

    def come_and_go() -> None:
        while not over.wait(0.01):
            shutil.rmtree(demands, ignore_errors=True)
            demands.mkdir(exist_ok=True)
            (demands / "linear.0").touch()

    with TokenServer(lambda _: 2) as server, rotated_once(refresher, server) as daemon:
        restless = threading.Thread(target=come_and_go)
        restless.start()
        try:
            before = published(refresher)
            wait_until(lambda: published(refresher) >= before + 4, "the schedule is kept")
        finally:
            over.set()
            restless.join()
        said = stopped(refresher, daemon)
        assert "fault" not in said
        assert "storage_failed" not in said
        assert refresher.leftovers() == []
        assert server.reused == 0


def test_a_demand_that_cannot_be_removed_is_told_once_and_makes_no_storm(refresher: Command) -> None:
    """If it failed, a read-only demands directory would be met with rotations or publications without end."""
    need(no_mounts())
    demands, token = refresher.state / "demands", refresher.state / "tokens/linear.json"
    with TokenServer(lambda _: 3600) as server, rotated_once(refresher, server) as daemon, mounted(demands, "size=1m"):
        (demands / "linear.1").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(demands)], check=True)
        wait_until(lambda: published(refresher) == 2, "the demand is honoured")
        written = {token.stat().st_mtime_ns}
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            written.add(token.stat().st_mtime_ns)
            time.sleep(0.01)  # between two looks
        assert len(written) < 6
        assert len(server.asked["client"]) == 2
        assert stopped(refresher, daemon).count("cannot remove the demand") == 1
